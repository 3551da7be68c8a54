"""Passwords are made once, kept from everybody else, and never asked of loopback alone."""

import os
import socket
import stat

import pytest

from core.errors import UserError
from infra.access import Access, forget, open_access, read_access
from infra.services import Addresses, check_host, check_ports, client_environment, mlflow_server, prefect_server, worker


@pytest.fixture(autouse=True)
def _no_access(monkeypatch):
    monkeypatch.delenv("MAEFLOW_ACCESS", raising=False)


def test_a_password_is_made_up_once_and_is_the_owners_alone(tmp_path):
    made = open_access(tmp_path)
    assert len(made.password) >= 20
    assert open_access(tmp_path) == made == read_access(tmp_path)
    file = tmp_path / "private" / "access.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_another_password_for_a_name_that_mlflow_knows_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("MAEFLOW_ACCESS", "lab:secret-words")
    assert open_access(tmp_path).user == "lab"
    monkeypatch.setenv("MAEFLOW_ACCESS", "lab:other-words")
    with pytest.raises(UserError, match="another password than MLflow has for it"):
        open_access(tmp_path)


@pytest.mark.parametrize("wrong", ["", "lab", ":secret-words", "lab:short"])
def test_what_is_no_name_and_password_is_refused(tmp_path, monkeypatch, wrong):
    monkeypatch.setenv("MAEFLOW_ACCESS", wrong)
    with pytest.raises(UserError, match="user:password"):
        open_access(tmp_path)
    assert not (tmp_path / "private").exists()


@pytest.mark.parametrize("host", ["10.0.0.1", "example.org"])
def test_other_machines_are_let_in_by_password_only(host):
    with pytest.raises(UserError, match="--auth"):
        check_host(host, None)
    check_host(host, Access("lab", "secret-words", "key"))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "::1", ""])
def test_a_host_is_one_address_that_links_can_be_made_of(host):
    with pytest.raises(UserError, match="under which other machines reach this one"):
        check_host(host, Access("lab", "secret-words", "key"))


@pytest.mark.parametrize(
    ("addresses", "message"),
    [
        (Addresses(prefect=5000, mlflow=5000), "both servers cannot listen at port 5000"),
        (Addresses(prefect=70000), "--prefect-port 70000"),
        (Addresses(host="192.0.2.1"), "192.0.2.1 is no address of this machine"),
        (Addresses(host="no-such-host.invalid"), "no-such-host.invalid is no address of this machine"),
    ],
)
def test_addresses_that_cannot_be_are_refused(addresses, message):
    with pytest.raises(UserError, match=message):
        check_ports(addresses)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_loopback_needs_none(host):
    check_host(host, None)


def test_a_taken_port_is_named_with_its_holder_and_a_free_one():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError) as refused:
            check_ports(Addresses(prefect=port))
    text = str(refused.value)
    assert f"port {port} is taken by process {os.getpid()}" in text
    offered = int(text.partition("--prefect-port ")[2].partition(",")[0])
    with socket.socket() as free:
        free.bind(("127.0.0.1", offered))


def test_no_command_line_holds_the_password(tmp_path):
    access = Access("lab", "secret-words", "form-key")
    (tmp_path / "private").mkdir()
    services = [prefect_server(tmp_path, Addresses(), access), mlflow_server(tmp_path, Addresses(), access)]
    services.append(worker(tmp_path, client_environment(Addresses(), access), "maeflow", None))
    for service in services:
        assert "secret-words" not in " ".join(service.command)
        assert any("secret-words" in value for value in service.environment.values())
        left = forget(service.environment)
        assert not any("secret-words" in value or "form-key" in value for value in left.values())
    assert "secret-words" not in (tmp_path / "private" / "mlflow_auth.ini").read_text()
