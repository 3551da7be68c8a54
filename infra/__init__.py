"""Settings, launchers, mirrors: what connects stages with the world outside."""
