"""What a rank leaves behind when it has done its work."""

import signal
from types import SimpleNamespace

from launcher.runtime import worker


def test_a_request_to_save_does_not_kill_a_rank_that_has_saved(monkeypatch, tmp_path):
    # At its end Python gives handlers of its own back to the system, which would kill.
    for name in ("read_place", "end_with_parent", "log_to", "take_directory", "work"):
        monkeypatch.setattr(worker, name, lambda *arguments: type("Place", (), {"rank": 0})())
    launch = SimpleNamespace(hang_timeout_s=None)
    frozen = SimpleNamespace(run=SimpleNamespace(launch=launch))
    monkeypatch.setattr(worker, "read_frozen", lambda files: frozen)
    before = signal.getsignal(signal.SIGUSR1)
    try:
        worker.main(str(tmp_path))
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGUSR1, before)
