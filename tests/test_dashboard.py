"""The dashboard for Grafana: it asks for metrics that there are, with labels that they have, and its panels fit."""

import json
import re
from typing import Any

import pytest

from scripts.docs import METRICS_PAGE
from server.metrics import METRICS

DASHBOARD: dict[str, Any] = json.loads((METRICS_PAGE.parent / "grafana" / "facet.json").read_text(encoding="utf-8"))
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
SHOWN = [panel for panel in PANELS if panel["type"] != "row"]
QUERIES = [target["expr"] for panel in SHOWN for target in panel["targets"]]
PAGE_QUERIES = re.findall(r"\| `([^`]*)` \|$", METRICS_PAGE.read_text(encoding="utf-8"), re.MULTILINE)
FOREIGN = {"process_resident_memory_bytes", "process_cpu_seconds_total"}


def series() -> dict[str, set[str]]:
    """Return every name that a query may have, with its labels."""
    found: dict[str, set[str]] = {name: set() for name in FOREIGN}
    for metric in METRICS:
        labels = set(metric.labels)
        if metric.type == "histogram":
            found |= {f"{metric.name}_{part}": labels for part in ("sum", "count")}
            found[f"{metric.name}_bucket"] = labels | {"le"}
        else:
            found[metric.name] = labels
    return found


def asked(query: str) -> set[str]:
    return set(re.findall(r"\b(?:facet|process)_\w+", query))


@pytest.mark.parametrize("query", [*QUERIES, *PAGE_QUERIES])
def test_every_query_asks_for_what_there_is(query: str) -> None:
    known = series()
    names = asked(query)
    assert names
    assert names <= set(known)
    labels = {"instance"} | {label for name in names for label in known[name]}
    used = re.findall(r"[{,](\w+)=~?\"", query)
    used += re.findall(r"(\w+)!=", query)
    used += [label.strip() for group in re.findall(r"by \(([^)]*)\)", query) for label in group.split(",")]
    assert set(used) <= labels


@pytest.mark.parametrize("query", [*QUERIES, *PAGE_QUERIES])
def test_counters_are_asked_for_their_rate_and_gauges_are_not(query: str) -> None:
    for name in asked(query):
        counts = name.endswith(("_total", "_sum", "_count", "_bucket"))
        assert bool(re.search(rf"(?:rate|increase)\({name}\b", query)) == counts, name


def test_the_page_has_queries_and_the_dashboard_shows_every_metric() -> None:
    assert len(PAGE_QUERIES) >= 8
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for query in QUERIES for name in asked(query)}
    assert {metric.name for metric in METRICS} <= shown


def test_each_query_is_for_the_chosen_server_and_each_panel_for_the_chosen_prometheus() -> None:
    assert all('instance=~"$instance"' in query for query in QUERIES)
    for panel in SHOWN:
        assert {part["datasource"]["uid"] for part in (panel, *panel["targets"])} == {"${datasource}"}
    assert [variable["name"] for variable in DASHBOARD["templating"]["list"]] == ["datasource", "instance"]


def test_legends_name_labels_that_the_query_keeps() -> None:
    for panel in SHOWN:
        for target in panel["targets"]:
            kept = {
                label.strip() for group in re.findall(r"by \(([^)]*)\)", target["expr"]) for label in group.split(",")
            }
            assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= kept


def test_panels_have_titles_units_and_places_of_their_own() -> None:
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    assert all(panel["title"] for panel in PANELS)
    assert all(panel["fieldConfig"]["defaults"]["unit"] for panel in SHOWN)
    taken: set[tuple[int, int]] = set()
    for panel in PANELS:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
