"""Fifty clients watch one study while twenty studies a second are submitted: how long answers take, and whether anything is lost.

python -m benchmarks.serve_load [--seconds 60] [--watchers 50] [--rate 20], loopback only. Watchers do what the page does: they follow
the events and fetch table and drawings when a trial ends. The server, its running study and the clients share the machine.
"""

import argparse
import asyncio
import json
import os
import platform
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil

HPSEARCH = str(Path(sys.executable).parent / "hpsearch")
WATCHED = {"name": "watched", "trials": 100_000, "pruner": "none", "space": {"epochs": 20, "frozen_layers": {"low": 4, "high": 6}}}


def start(folder):
    """The server, and its port."""
    log = (folder / "serve.log").open("w")
    command = [HPSEARCH, "serve", "--port", "0", "--no-tracking", "--quiet"]
    process = subprocess.Popen(command, cwd=folder, stderr=log, start_new_session=True)
    while not (found := re.search(r"http://127.0.0.1:(\d+)", (folder / "serve.log").read_text())):
        time.sleep(0.1)
    time.sleep(1.0)
    return process, int(found[1])


async def ask(port, method, path, body=None, headers=""):
    """Status and body of one request, and the seconds that it took."""
    begun = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    data = json.dumps(body).encode() if body is not None else b""
    headers = f"host: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n{headers}content-length: {len(data)}\r\n"
    head = f"{method} {path} HTTP/1.1\r\n{headers}\r\n"
    writer.write(head.encode() + data)
    answer = await reader.read()
    writer.close()
    return int(answer.split(b" ", 2)[1]), answer.partition(b"\r\n\r\n")[2], time.perf_counter() - begun


async def watch(port, heard, took, ending):
    """One client that watches."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /api/studies/watched/events HTTP/1.1\r\nhost: localhost\r\n\r\n")
    fetched = 0.0
    try:
        while not ending.is_set():
            try:
                line = await asyncio.wait_for(reader.readline(), 1.0)
            except TimeoutError:
                continue
            if not line:
                heard["broken off"] += 1
                return
            if line.startswith(b"event: "):
                kind = line[7:].strip().decode()
                heard[kind] += 1
                if kind == "ended" and time.monotonic() - fetched > 1.0:  # the page fetches once, however many end meanwhile
                    fetched = time.monotonic()
                    await asyncio.sleep(random.uniform(0.3, 1.0))  # as the page does
                    for path in ("/parts/trials/watched", "/parts/data/watched"):
                        status, _, seconds = await ask(port, "GET", path)
                        took["part"].append(seconds)
                        heard[f"part {status}"] += 1
    finally:
        writer.close()


async def submit(port, number, took, found):
    """One submission, and the same once more every tenth time."""
    body = {"study": {"name": f"load-{number}", "trials": 1}, "priority": -1}
    status, _, seconds = await ask(port, "POST", "/api/studies", body, f"idempotency-key: k{number}\r\n")
    took["submit"].append(seconds)
    found[status] += 1
    if number % 10 == 0:
        status, _, seconds = await ask(port, "POST", "/api/studies", body, f"idempotency-key: k{number}\r\n")
        took["submit"].append(seconds)
        found[f"again {status}"] += 1


async def load(port, seconds, watchers, rate):
    """Everything at once."""
    took, found, heard, ending = {"submit": [], "part": [], "show": []}, Counter(), Counter(), asyncio.Event()
    assert (await ask(port, "POST", "/api/studies", {"study": WATCHED, "priority": 9}))[0] == 201
    while json.loads((await ask(port, "GET", "/api/studies/watched"))[1])["ended"] < 1:
        await asyncio.sleep(0.5)
    clients = [asyncio.create_task(watch(port, heard, took, ending)) for _ in range(watchers)]
    begun, asked = time.monotonic(), []
    for number in range(int(seconds * rate)):
        await asyncio.sleep(max(0.0, begun + number / rate - time.monotonic()))
        asked.append(asyncio.create_task(submit(port, number, took, found)))
        if number % rate == 0:
            took["show"].append((await ask(port, "GET", "/api/studies/watched"))[2])
    await asyncio.gather(*asked)
    lasted = time.monotonic() - begun
    ending.set()
    await asyncio.gather(*clients)
    kept, offset = set(), 0
    while True:
        page = json.loads((await ask(port, "GET", f"/api/studies?limit=1000&offset={offset}"))[1])
        kept |= {row["study"] for row in page["studies"]}
        offset += 1000
        if offset >= page["total"]:
            break
    lost = int(seconds * rate) - sum(name.startswith("load-") for name in kept)
    ended = json.loads((await ask(port, "GET", "/api/studies/watched"))[1])["ended"]
    await ask(port, "POST", "/api/studies/watched/cancel")
    return took, found, heard, lost, lasted, ended


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--watchers", type=int, default=50)
    parser.add_argument("--rate", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        process, port = start(Path(place))
        try:
            took, found, heard, lost, lasted, ended = asyncio.run(load(port, options.seconds, options.watchers, options.rate))
            spent = sum(psutil.Process(process.pid).cpu_times()[:2])
        finally:
            process.terminate()
            process.wait(60)
    cores, (last, _, before) = len(os.sched_getaffinity(0)), os.getloadavg()
    print(f"{platform.machine()}, {cores} cores, load average {before:.1f} over 15 minutes, {last:.1f} over the last")
    print(f"{options.watchers} watchers, {options.rate} submissions a second for {lasted:.0f} s; the watched study ended {ended} trials")
    print(f"the server used {spent:.1f} s of processor, start included")
    for kind, seconds in took.items():
        if len(seconds) > 1:
            cuts = statistics.quantiles(seconds, n=100, method="inclusive")
            middle, high, most = 1000 * statistics.median(seconds), 1000 * cuts[98], 1000 * max(seconds)
            print(f"{kind}: n={len(seconds)}, median {middle:.0f} ms, p99 {high:.0f} ms, worst {most:.0f} ms")
    print(f"answers to submissions {dict(found)}; lost {lost}; heard {dict(heard)}")


if __name__ == "__main__":
    main()
