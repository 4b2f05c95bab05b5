"""The records of bench/results as Markdown: README's short table and those of docs/speed.md.

``python bench/summary.py`` writes them between the markers of the two pages; ``--check`` writes
nothing and fails where a page does not say what the records say. `figures.yaml` says which of them
README shows, and what was aimed at.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

BENCH = Path(__file__).resolve().parent
FIGURES = yaml.safe_load((BENCH / "figures.yaml").read_text())
OURS = ("esmm_fast", "prepare", "tokenise")  # how the names of our candidates begin
MARKER = "<!-- bench/summary.py: {} -->"

Comparison = dict[str, Any]  # what harness.Comparison.as_dict gives, with the facts of its run


def records() -> dict[str, list[Comparison]]:
    """Returns the stored comparisons by the stem of their file."""
    found = {}
    for path in sorted((BENCH / "results").glob("*.json")):
        content = json.loads(path.read_text())
        if isinstance(content, list):
            found[path.stem] = content
        elif "comparisons" in content:
            found[path.stem] = [{"facts": content["facts"], **c} for c in content["comparisons"]]
    return found


def ratios(comparison: Comparison, ours: str, peer: str) -> list[float]:
    """Returns how many times the time of `ours` the peer took, round by round."""
    taken = [comparison["candidates"][name]["seconds"] for name in (peer, ours)]
    return [theirs / own for theirs, own in zip(*taken, strict=True)]


def time_text(comparison: Comparison, name: str) -> str:
    seconds = statistics.median(comparison["candidates"][name]["seconds"])
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def pairs(comparison: Comparison) -> Iterator[tuple[str, str]]:
    """Yields each of our candidates with each peer."""
    names = list(comparison["candidates"])
    for ours in (name for name in names if name.startswith(OURS)):
        yield from ((ours, peer) for peer in names if not peer.startswith(OURS))


def figure(file: str, comparison: Comparison, ours: str, peer: str) -> dict[str, Any] | None:
    """Returns the entry of figures.yaml for a pair."""
    for entry in FIGURES:
        if (
            (entry["file"], entry["ours"]) == (file, ours)
            and re.fullmatch(re.escape(entry["peer"]) + "|" + entry["peer"], peer)
            and entry.get("threads", 2) == comparison["threads"]
            and re.search(entry["title"], comparison["title"])
        ):
            return entry
    return None


def ratio_text(values: list[float], entry: dict[str, Any] | None) -> str:
    middle = statistics.median(values)
    if entry and entry.get("share"):
        return f"{1 / middle:.2f} of its time"
    return f"{middle:.3g} x"


def aim_text(entry: dict[str, Any] | None) -> str:
    if not entry or "aim" not in entry:
        return ""
    return f"{entry['aim']} of its time" if entry.get("share") else f"{entry['aim']} x"


def short_table(found: dict[str, list[Comparison]]) -> str:
    """Returns README's table: the rows of figures.yaml that have words for it, in its order."""
    lines = ["| work | this package | against | | ratio | aim |", "|---|---|---|---|---|---|"]
    for entry in (e for e in FIGURES if "work" in e):
        for comparison in found.get(entry["file"], []):
            for ours, peer in pairs(comparison):
                if figure(entry["file"], comparison, ours, peer) is entry:
                    lines.append(
                        f"| {entry['work']} | {time_text(comparison, ours)} | {entry['against']} | "
                        f"{time_text(comparison, peer)} | "
                        f"{ratio_text(ratios(comparison, ours, peer), entry)} | {aim_text(entry)} |"
                    )
    return "\n".join(lines)


def facts_line(comparisons: list[Comparison]) -> str:
    """Returns where and when the comparisons ran, in a sentence."""

    def each(key: str) -> str:
        return ", ".join(sorted({str(c["facts"][key]) for c in comparisons}))

    load = max(c["facts"]["load"] for c in comparisons)
    date = min(c["facts"]["date"] for c in comparisons)[:16]
    rounds = sorted({c["rounds"] for c in comparisons})
    return (
        f"{each('processor')}, {each('cores')} cores, torch {each('torch')}, Python "
        f"{each('python')}; commit {each('commit')}; {date} UTC; "
        f"{' or '.join(map(str, rounds))} rounds; load average before it at most {load}."
    )


def grid_summary(comparisons: list[Comparison]) -> Iterator[str]:
    """Yields a grid of shapes as its median, least and most, by number of threads."""
    yield "| threads | shapes | median | least | most |"
    yield "|---|---|---|---|---|"
    for threads in sorted({c["threads"] for c in comparisons}):
        named = sorted(
            (statistics.median(ratios(c, ours, peer)), c["title"].split(", forward + ")[1])
            for c in comparisons
            for ours, peer in pairs(c)
            if c["threads"] == threads
        )
        middle = statistics.median(value for value, _ in named)
        ends = " | ".join(f"{value:.2f} x ({title})" for value, title in (named[0], named[-1]))
        yield f"| {threads} | {len(named)} | {middle:.2f} x | {ends} |"


def full_table(file: str, comparisons: list[Comparison]) -> Iterator[str]:
    """Yields every pair of every comparison, with the quartiles of its rounds."""
    yield "| work | threads | ours | | against | | ratio | quartiles | aim |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for c in comparisons:
        title = c["title"]
        if "bytes" in c:
            least = sum(c["bytes"].values()) / c["copy_bytes_per_second"]
            title += f" (its bytes at the speed of a copy: {least * 1e3:.2f} ms)"
        for ours, peer in pairs(c):
            values = ratios(c, ours, peer)
            low, _, high = statistics.quantiles(values, n=4, method="inclusive")
            entry = figure(file, c, ours, peer)
            yield (
                f"| {title} | {c['threads']} | {ours} | {time_text(c, ours)} | {peer} | "
                f"{time_text(c, peer)} | {ratio_text(values, entry)} | {low:.3g} to {high:.3g} | "
                f"{aim_text(entry)} |"
            )
            title = ""


def all_tables(found: dict[str, list[Comparison]]) -> str:
    """Returns the tables of docs/speed.md: one for each record."""
    lines = []
    for file, comparisons in found.items():
        facts = comparisons[0]["facts"]
        command = facts.get("command", f"python bench/{file}.py")
        lines += [f"## {file}", "", f"`{command}`. {facts_line(comparisons)}", ""]
        summary = grid_summary if file == "embedding_bag" else lambda c, f=file: full_table(f, c)
        lines += [*summary(comparisons), ""]
    return "\n".join(lines).rstrip()


def with_block(page: str, name: str, block: str) -> str:
    """Returns the page with what stands between the two markers of `name` replaced."""
    marker = MARKER.format(name)
    parts = page.split(marker)
    if len(parts) != 3:
        raise ValueError(f"expected two lines {marker}, got {len(parts) - 1}")
    return f"{parts[0]}{marker}\n{block}\n{marker}{parts[2]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("--check", action="store_true", help="write nothing; fail where it differs")
    check = parser.parse_args().check
    found = records()
    for path, name, block in (
        (BENCH.parent / "README.md", "short", short_table(found)),
        (BENCH.parent / "docs" / "speed.md", "all", all_tables(found)),
    ):
        page = path.read_text()
        written = with_block(page, name, block)
        if check and written != page:
            sys.exit(f"{path}: not what bench/results says: run python bench/summary.py")
        path.write_text(written)


if __name__ == "__main__":
    main()
