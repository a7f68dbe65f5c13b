"""What the page costs: bytes, first paint, and the live map of 54 layers × 256 experts.

   python -m tests.bench.bench_page

One server process (`tests.bench.page_server`: real books and routes, no shards) and one Chromium on
loopback. `page_first_paint` is the browser's own figure for a tab without a cache, the median of
several loads. `map_server_cpu` is the server's processor time while one page watches, less what the
same process takes while nobody does. `map_longest_frame` is the longest time between two frames of
the cluster view while it is updated every second, and `still_longest_frame` the same of a view in
which nothing happens: what a busy machine does to both. `map_long_tasks` counts what blocked the
page's thread for 50 ms or more, and `map_thread_busy` is how long all its tasks took in a second.
All are of a view that is up: its first picture is not counted.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

from playwright.sync_api import Browser, CDPSession, Page

from tests.bench.report import Figure, Machine, report
from tests.support.browser import chromium, find_chromium, tab
from tests.support.server import tree_cpu_s
from trinity_serve.api.page import page_files

STOP_TIMEOUT_S = 10.0
WATCH_FRAMES = """seconds => new Promise((resolve) => {
  const frames = [];
  let tasks = 0;
  const observer = new PerformanceObserver((list) => { tasks += list.getEntries().length; });
  observer.observe({ type: "longtask" });
  const begun = performance.now();
  let last = begun;
  const frame = (now) => {
    frames.push(now - last);
    last = now;
    if (now - begun < 1000 * seconds) requestAnimationFrame(frame);
    else { observer.disconnect(); resolve([frames.slice(1), tasks]); }
  };
  requestAnimationFrame(frame);
})"""
FIRST_PAINT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? -1"


def first_paint_ms(browser: Browser, url: str) -> float:
    """Load the page in a tab without a cache; return its first contentful paint."""
    with tab(browser, url) as fresh:
        page = fresh.open()
        page.wait_for_function(f"({FIRST_PAINT}) > 0")
        return float(page.evaluate(FIRST_PAINT))


def open_map(page: Page, token: str) -> None:
    """Give the token and wait for the map."""
    page.evaluate("token => sessionStorage.setItem('trinity.admin-key', token)", token)
    page.reload()
    page.get_by_role("button", name="Kill shard 0").wait_for()
    page.wait_for_timeout(3000)


def task_duration_s(session: CDPSession) -> float:
    """Return how long the tasks of the page's thread have taken so far."""
    metrics = session.send("Performance.getMetrics")["metrics"]
    return float(next(each["value"] for each in metrics if each["name"] == "TaskDuration"))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--loads", type=int, default=9)
    options = parser.parse_args()
    path = find_chromium()
    if path is None:
        sys.exit("no Chromium on this machine: `make browser` says what is needed")
    machine = Machine.here()
    command = [sys.executable, "-m", "tests.bench.page_server"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        _, url, _, token = process.stdout.readline().split()
        with chromium(path) as browser:
            for figure in measure(
                browser,
                (process.pid, url.removesuffix("/v1"), token),
                options.seconds,
                options.loads,
            ):
                report(machine, figure, layers=54, experts=256)
    finally:
        process.terminate()
        process.wait(STOP_TIMEOUT_S)


def measure(
    browser: Browser, server: tuple[int, str, str], seconds: float, num_loads: int
) -> list[Figure]:
    """Return all figures. `server`: its process, URL and admin token."""
    pid, url, token = server
    num_bytes = sum(len(file.body) for file in page_files().values())
    figures = [Figure("page_bytes", num_bytes, "B")]
    paints = [first_paint_ms(browser, url) for _ in range(num_loads)]
    figures.append(Figure("page_first_paint", statistics.median(paints), "ms"))
    before_s = tree_cpu_s(pid)
    time.sleep(seconds / 3)
    idle = (tree_cpu_s(pid) - before_s) / (seconds / 3)
    with tab(browser, url) as opened:
        page = opened.open("cluster")
        open_map(page, token)
        session = page.context.new_cdp_session(page)
        session.send("Performance.enable")
        before_s, begun_s = tree_cpu_s(pid), time.monotonic()
        tasks_before_s = task_duration_s(session)
        frames, num_tasks = page.evaluate(WATCH_FRAMES, seconds)
        thread_s = task_duration_s(session) - tasks_before_s
        busy = (tree_cpu_s(pid) - before_s) / (time.monotonic() - begun_s)
        page.get_by_role("link", name="Chat").click()
        still, _ = page.evaluate(WATCH_FRAMES, seconds)
    figures.append(Figure("map_server_cpu", 100 * (busy - idle), "% of a core"))
    figures.append(Figure("map_thread_busy", 1000 * thread_s / seconds, "ms/s"))
    figures.append(Figure("map_longest_frame", max(frames), "ms"))
    figures.append(Figure("still_longest_frame", max(still), "ms"))
    figures.append(Figure("map_frames_p99", statistics.quantiles(frames, n=100)[-1], "ms"))
    figures.append(Figure("map_frames_over_50ms", sum(frame > 50 for frame in frames), "frames"))
    figures.append(Figure("map_long_tasks", num_tasks, "tasks"))
    return figures


if __name__ == "__main__":
    main()
