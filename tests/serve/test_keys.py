"""Keys and quotas: counted right by threads and processes at once, and kept."""

import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from llava.errors import LlavaError
from llava.serve.keys import Amounts, KeyStore, QuotaError, Quotas

NOW = 1_800_000_000.0  # 20 s before a minute ends


def test_a_key_is_stored_hashed_and_can_be_revoked(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "keys.sqlite"
    store = KeyStore(path)
    key = store.create("ann")
    store.close()
    assert all(key.encode() not in file.read_bytes() for file in path.parent.iterdir())
    assert path.stat().st_mode & 0o077 == 0
    again = KeyStore(path)
    found = again.find(key)
    assert found is not None and found.name == "ann" and key.startswith(found.hint)
    assert again.find(key + "x") is None and again.find("") is None
    again.revoke("ann")
    assert again.find(key) is None and again.all()[0].revoked is not None
    with pytest.raises(LlavaError, match="already"):
        again.create("ann")
    with pytest.raises(LlavaError, match="no key named 'bob'; there are: ann"):
        again.revoke("bob")


def test_quotas_end_with_their_windows(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys.sqlite")
    store.create("ann", Quotas(requests_minute=2, tokens_day=100))
    (key,) = store.all()
    store.charge(key, Amounts(requests=2), NOW)
    with pytest.raises(QuotaError, match="2 requests a minute") as told:
        store.charge(key, Amounts(requests=1), NOW)
    assert 0 < told.value.retry_after <= 60
    store.charge(key, Amounts(requests=1), NOW + 60)
    charge = store.charge(key, Amounts(tokens=100), NOW + 60)
    with pytest.raises(QuotaError, match="100 are used"):
        store.charge(key, Amounts(tokens=1), NOW + 120)
    store.settle(charge, Amounts(tokens=-60))
    store.charge(key, Amounts(tokens=60), NOW + 120)
    with pytest.raises(QuotaError):
        store.charge(key, Amounts(tokens=1), NOW + 180)
    store.charge(key, Amounts(tokens=1), NOW + 86400)
    store.limit("ann", Quotas())
    (key,) = store.all()
    store.charge(key, Amounts(requests=10**6, tokens=10**9), NOW)


CHARGE = """
import sys
from pathlib import Path
from llava.serve.keys import Amounts, KeyStore, QuotaError
store = KeyStore(Path(sys.argv[1]))
(key,) = store.all()
done = 0
for _ in range(100):
    try:
        store.charge(key, Amounts(requests=1, tokens=7), 1_800_000_000.0)
        done += 1
    except QuotaError:
        pass
print(done)
"""


def test_no_number_of_processes_and_threads_goes_over_a_quota(tmp_path: Path) -> None:
    path = tmp_path / "keys.sqlite"
    store = KeyStore(path)
    store.create("ann", Quotas(requests_minute=150))
    (key,) = store.all()
    processes = [
        subprocess.Popen([sys.executable, "-c", CHARGE, str(path)], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]

    def charge(_: int) -> int:
        try:
            store.charge(key, Amounts(requests=1, tokens=7), NOW)
        except QuotaError:
            return 0
        return 1

    with ThreadPoolExecutor(4) as threads:
        done = sum(threads.map(charge, range(100)))
    done += sum(int(process.communicate()[0]) for process in processes)
    assert done == 150
    file = sqlite3.connect(path)
    assert file.execute("SELECT requests, tokens FROM use WHERE kind = 'minute'").fetchall() == [(150, 1050)]
    file.close()


def test_a_file_that_is_no_database_is_told(tmp_path: Path) -> None:
    path = tmp_path / "keys.sqlite"
    path.write_text("not a database, but long enough to look at " * 30)
    with pytest.raises(LlavaError, match="cannot be used for keys"):
        KeyStore(path)
