"""A storm over a study on a PostgreSQL server with two hosts: two processes that have a folder each and play different machines.

Both want to run the study; one does, and the other waits for its turn. What is hit: orchestrators, workers and MLflow's processes by
kill -9, the orchestrator by freezing it until the other host has taken over, and the server by restarts as after a loss of power.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import optuna
import psycopg
from sqlalchemy.exc import SQLAlchemyError

from hpsearch.search.store import open_storage
from hpsearch.tracking import create_store
from tests.postgres import Postgres
from tests.session import FENCED
from tests.storm import SHARES, Toll, begin, complete, examine, family, grid, ledgered, remaining
from tests.support.commands import Command

HOSTS = ("host-a", "host-b")


class Pair:
    """The sessions of two hosts in one place."""

    def __init__(self, place: Path, server: Postgres, asked: dict[str, object], without: str = "") -> None:
        self.place, self.server, self.url = place, server, server.database()
        open_storage(self.url, create=True).engine.dispose()
        self.asked = {"storage": self.url, "ledger": str(place / "ledger"), **asked}
        if asked.get("mlflow"):
            self.asked["mlflow"] = f"sqlite:///{place}/mlflow.db"
            create_store(self.asked["mlflow"])
        (place / "session.json").write_text(json.dumps(self.asked))
        self.without, self.toll, self.last = without, Toll(), ""
        self.sessions: dict[str, Command] = {}
        for host in HOSTS:
            (place / host).mkdir()

    def begin(self, host: str) -> None:
        """Start, or start again, what a host does."""
        self.sessions[host] = begin(self.place / host, self.asked | {"host": host}, without=self.without)

    def active(self) -> str:
        """The host that holds the study and lives; "" when none does, or the server is away."""
        try:
            with psycopg.connect(self.url.replace("+psycopg", ""), connect_timeout=5) as db:
                row = db.execute("SELECT system FROM hpsearch_leases WHERE expires > extract(epoch FROM clock_timestamp())").fetchone()
        except psycopg.Error:
            return ""
        host = row[0] if row else ""
        if host and self.last and host != self.last:
            self.toll.changes += 1
        self.last = host or self.last
        return host if host and self.sessions[host].poll() is None else ""

    def other(self, host: str) -> str:
        return HOSTS[1 - HOSTS.index(host)]

    def await_turn(self, host: str, seconds: float = 40.0) -> bool:
        """Wait until a host has the study; False when its session ended instead."""
        give_up = time.monotonic() + seconds
        while self.active() != host:
            if self.sessions[host].poll() is not None:
                return False
            assert time.monotonic() < give_up, f"{host} never came to its turn\n{self.log()}"
            time.sleep(0.1)
        return True

    def freeze(self, host: str) -> None:
        """Stop an orchestrator until the other host has its study, and wake it: it must end, and say why."""
        session = self.sessions[host]
        session.send_signal(signal.SIGSTOP)
        taken = self.await_turn(self.other(host))
        session.send_signal(signal.SIGCONT)
        if not taken:
            return
        try:
            self.ended(host, session.wait(timeout=120))
        except subprocess.TimeoutExpired:
            session.send_signal(signal.SIGUSR1)
            time.sleep(1)
            raise RuntimeError(f"{host} did not end\n{self.log()}") from None
        self.begin(host)

    def ended(self, host: str, code: int) -> None:
        """Note how a session ended that nobody killed; 0 when the study was over."""
        if code not in (0, FENCED):
            self.toll.errors += 1
            with (self.place / host / "log").open("a") as log:
                print(f"it ended with {code}", file=log)

    def kill(self, host: str, rng: random.Random) -> None:
        """Kill an orchestrator; half of the time its host comes back only once the other has taken over."""
        session = self.sessions[host]
        session.kill()
        session.wait()
        if rng.random() < 0.5:
            self.await_turn(self.other(host))
        self.begin(host)

    def log(self) -> str:
        return "\n".join(f"{host}: {(self.place / host / 'log').read_text()[-6000:]}" for host in HOSTS)

    def told(self) -> dict[int, float]:
        """What Optuna calls complete; nothing while the server is away."""
        try:
            return complete(self.place)
        except (SQLAlchemyError, optuna.exceptions.OptunaError):
            return {}

    def finish(self) -> None:
        """Wait until both hosts find that nothing is left to do."""
        for host in HOSTS:
            while (code := self.sessions[host].wait(timeout=600)) != 0:
                if code not in (FENCED, -signal.SIGKILL):
                    raise RuntimeError(self.log())
                self.begin(host)

    def close(self) -> None:
        for session in self.sessions.values():
            if session.poll() is None:
                session.send_signal(signal.SIGCONT)
                session.kill()
                session.wait()


def storm_of_hosts(
    place: Path,
    server: Postgres,
    seed: int,
    kills: int,
    points: int,
    restarts: int = 5,
    freezes: int = 3,
    sleep: float = 0.15,
    gap: float = 0.7,
) -> Toll:
    """Until everything has happened, in random order; then the study ends; what it came to."""
    rng, begun = random.Random(seed), time.monotonic()
    pair = Pair(place, server, {"trials": points, "space": grid(points), "sampler": "grid", "sleep": sleep, "mlflow": True})
    toll, told = pair.toll, dict[int, float]()
    deeds = ["server"] * restarts + ["freeze"] * freezes + rng.choices(list(SHARES), list(SHARES.values()), k=kills)
    rng.shuffle(deeds)
    try:
        for host in HOSTS:
            pair.begin(host)
        calm = 0
        while deeds:
            time.sleep(rng.uniform(0.1, 2 * gap))
            patience = time.monotonic() + 20
            while rng.random() < 0.9 and ledgered(place) == calm and time.monotonic() < patience:
                time.sleep(0.05)
            codes = {host: session.poll() for host, session in pair.sessions.items()}
            if 0 in codes.values():
                break
            for host, code in codes.items():
                if code is not None:
                    pair.ended(host, code)
                    pair.begin(host)
            if not (host := pair.active()):
                continue
            told |= pair.told()
            deed = deeds[-1]
            if deed == "server":
                server.restart()
            elif deed == "freeze":
                pair.freeze(host)
            elif deed == "orchestrator":
                pair.kill(host if rng.random() < 0.8 else pair.other(host), rng)
            else:
                if not (victims := family(pair.sessions[host])[deed]):
                    continue
                try:
                    os.kill(rng.choice(victims), signal.SIGKILL)
                except ProcessLookupError:
                    continue
            deeds.pop()
            toll.kills[deed] = toll.kills.get(deed, 0) + 1
            calm = ledgered(place)
        pair.finish()
        if toll.kills.get("tracker") or toll.kills.get("freeze"):  # a mirror that was cut off is completed by the next session
            pair.begin(HOSTS[0])
            pair.finish()
    finally:
        pair.close()
    examine(place, toll, told, points)
    toll.orphans = sum(remaining(place / host) for host in HOSTS)
    toll.wall = time.monotonic() - begun
    return toll
