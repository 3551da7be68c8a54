"""What the walk-through needs: a stack of its own, commands as people type them, both servers' APIs, a browser."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from datetime import datetime
from io import BytesIO
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
import yaml

BIN = Path(sys.executable).parent
SCREENSHOTS = "MAEFLOW_KEEP_SCREENSHOTS"
"""A folder, where pictures of the pages are wanted."""
PICTURE_BYTES = 200_000
ANALYTICS = "sr-client-cfg.amplitude.com"
"""The only host beside this machine that a page asks for: that of Prefect's second user interface."""
NO_ASSISTANT = "try { localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true') } catch {}"
"""MLflow's pages open a panel at the first visit that takes a quarter of them."""
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def flat(values, prefix=""):
    """Nested groups as dotted keys."""
    found = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def differing(one, other):
    """Dotted keys whose values differ, or that only one has."""
    one, other = flat(one), flat(other)
    return {key for key in one.keys() | other.keys() if one.get(key, "absent") != other.get(key, "absent")}


class Stack:
    """Both servers and a worker in a home of their own."""

    def __init__(self, home):
        self.home = home
        self.prefect_port, self.mlflow_port = free_ports(2)
        self.prefect = f"http://127.0.0.1:{self.prefect_port}"
        self.mlflow = f"http://127.0.0.1:{self.mlflow_port}"
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT", "MLFLOW", "MAEFLOW"))}
        self.environment = kept | {"OMP_NUM_THREADS": "1", "DO_NOT_TRACK": "true", "COLUMNS": "200"}

    def maeflow(self, command, *words, code=0):
        """Run a command of maeflow's; gives what it printed."""
        return self._run([BIN / "maeflow", command, *words, "--home", self.home], self.environment, code)

    def up(self, *words, code=0):
        ports = ["--prefect-port", str(self.prefect_port), "--mlflow-port", str(self.mlflow_port)]
        return self.maeflow("up", *ports, *words, code=code)

    def prefect_command(self, *words, code=0, cwd=None):
        """Run a command of Prefect's own."""
        return self._run([BIN / "prefect", "--no-prompt", *words], self.client, code, cwd)

    def python(self, script, *words):
        """Run a script, as somebody writes it who starts runs from Python."""
        return self._run([sys.executable, "-c", script, *words], self.client, 0)

    @property
    def client(self):
        own = {"PREFECT_API_URL": f"{self.prefect}/api", "PREFECT_HOME": str(self.home.parent / "somebody")}
        return self.environment | own

    def _run(self, command, environment, code, cwd=None):
        done = subprocess.run(
            [str(word) for word in command],
            env=environment,
            cwd=cwd or self.home.parent,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        said = done.stdout + done.stderr
        assert done.returncode == code, f"{command} ended with {done.returncode}, not {code}:\n{said}"
        return said

    def get(self, path):
        return httpx.get(f"{self.prefect}/api{path}", timeout=30).raise_for_status().json()

    def post(self, path, **body):
        return httpx.post(f"{self.prefect}/api{path}", json=body, timeout=30).raise_for_status().json()

    def mlflow_runs(self, stage, flow_run):
        """Runs of a stage that belong to a flow run."""
        about = {"experiment_name": f"maeflow/{stage}"}
        found = httpx.get(f"{self.mlflow}/api/2.0/mlflow/experiments/get-by-name", params=about, timeout=30)
        experiment = found.raise_for_status().json()["experiment"]["experiment_id"]
        body = {"experiment_ids": [experiment], "filter": f"tags.`prefect.flow_run_id` = '{flow_run}'"}
        answer = httpx.post(f"{self.mlflow}/api/2.0/mlflow/runs/search", json=body, timeout=30)
        return answer.raise_for_status().json().get("runs", [])

    def deployment(self, name):
        return self.get(f"/deployments/name/{name}")

    def count(self):
        """How many runs there are."""
        return self.post("/flow_runs/count")

    def run(self, identity):
        return self.get(f"/flow_runs/{identity}")

    def newest(self):
        return self.post("/flow_runs/filter", sort="START_TIME_DESC", limit=200)

    def wait(self, identity, wanted, seconds):
        """Wait until a run is in a state; another end is a failure."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            run = self.run(identity)
            if run["state_name"] == wanted:
                return run
            assert run["state_type"] not in ("FAILED", "CRASHED", "CANCELLED"), self.told(identity)
            time.sleep(0.3)
        raise AssertionError(f"{run['state_name']} and not {wanted} after {seconds} s:\n{self.told(identity)}")

    def told(self, identity):
        """The state and the log of a run."""
        lines = self.post("/logs/filter", logs={"flow_run_id": {"any_": [identity]}}, sort="TIMESTAMP_ASC")
        return "\n".join([self.run(identity)["state"]["message"] or "", *(line["message"] for line in lines)])

    def seconds_to(self, identity, state):
        """From a run's first state to another one, by its own history."""
        states = self.get(f"/flow_run_states/?flow_run_id={identity}")
        times = {one["name"]: datetime.fromisoformat(one["timestamp"]) for one in states}
        return (times[state] - min(times.values())).total_seconds()

    def processes(self):
        """All processes of this home that are left, as command lines."""
        found = []
        for process in psutil.process_iter():
            try:
                words = process.cmdline()
                known = [process.environ().get(name, "") for name in ("MAEFLOW_HOME", "PREFECT_HOME")]
            except psutil.Error:
                continue
            if str(self.home) in " ".join([*words, *known]) and process.pid != os.getpid():
                found.append(" ".join(words))
        return found


def run_id(said):
    """The id of the run that a command says it has made."""
    return re.search(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", said).group()


class Browser:
    """Debian's Chromium, whose pages may speak to this machine alone."""

    def __init__(self, chromium):
        self.strangers = []
        self.page = chromium.new_page(viewport={"width": 1280, "height": 900})
        self.page.set_default_timeout(60_000)
        self.page.add_init_script(NO_ASSISTANT)
        self.page.route("**/*", self._watch)
        self.page.on("websocket", lambda socket: self._note(socket.url))

    def _watch(self, route):
        if self._note(route.request.url):
            route.abort()
        else:
            route.continue_()

    def _note(self, url):
        where = urlsplit(url)
        if where.scheme in ("data", "blob", "about") or where.hostname == "127.0.0.1":
            return False
        self.strangers.append(where.hostname)
        return True

    def open(self, url):
        # MLflow's pages differ after the `#` only, which by itself loads nothing.
        self.page.goto("about:blank")
        self.page.goto(url)

    def field(self, label, number=0):
        """What is typed into under a label of a form, of either of Prefect's user interfaces."""
        text = self.page.get_by_text(label, exact=True).nth(number)
        around = text.locator("xpath=ancestor::*[.//input or .//textarea][1]")
        return around.locator("input,textarea").first

    def submit(self):
        """Send a form; gives the server's answer. As people do, again where its database was locked for the moment."""
        for _ in range(5):
            with self.page.expect_response(lambda answer: "/create_flow_run" in answer.url) as answer:
                self.page.get_by_role("button", name="Submit", exact=True).click()
            if answer.value.status != httpx.codes.SERVICE_UNAVAILABLE:
                break
        return answer.value

    def read(self):
        return self.page.inner_text("body")

    def keep(self, name):
        """Keep a picture of the page, where pictures are wanted."""
        folder = os.environ.get(SCREENSHOTS)
        if not folder:
            return
        from PIL import Image

        self.page.wait_for_timeout(2000)  # Pages fade in.
        picture = Image.open(BytesIO(self.page.screenshot())).convert("RGB").quantize(128)
        file = Path(folder) / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        picture.save(file, optimize=True)
        assert file.stat().st_size < PICTURE_BYTES, file


def find_chromium():
    """Where Chromium is; a test that needs it is skipped where it is not."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("needs Chromium (Debian: apt-get install chromium)")
    return found


def digits(folder, count):
    """Real handwritten digits as PNG files, in folders of their classes, in train and test."""
    from PIL import Image
    from sklearn.datasets import load_digits

    found = load_digits()
    for index in range(count):
        place = folder / ("test" if index % 5 == 0 else "train") / str(found.target[index])
        place.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray((found.images[index] * 15.9).astype("uint8"))
        picture.resize((28, 28), Image.Resampling.BICUBIC).save(place / f"{index:03d}.png")
    return folder


def filled(file, **values):
    """A YAML file with words replaced, as its header tells people to."""
    text = file.read_text()
    for word, value in values.items():
        assert word in text
        text = text.replace(word, value)
    assert yaml.safe_load(text)
    return text
