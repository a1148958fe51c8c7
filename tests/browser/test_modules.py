"""The parts of the page that know nothing of the page: groups, ranks, metrics, lanes."""

import pytest

from tests.browser.tab import Tab

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="package")]

METRICS = """# HELP facet_batch_items Inputs in a batch.
# TYPE facet_batch_items histogram
facet_batch_items_bucket{kind="visual",le="1.0"} 3.0
facet_batch_items_count{kind="visual",model="a\\\\"b"} 4.0
facet_batch_items_sum{kind="visual",model="a\\\\"b"} 10.0
facet_batch_items_count{kind="textual"} 1.0
facet_batch_items_sum{kind="textual"} 2.0 1700000000000
process_open_fds 12
"""


async def test_faces_that_are_linked_by_near_ones_are_one_group(tab: Tab) -> None:
    await tab.go("app")
    groups = await tab.run(
        "const { Groups } = await import('/app/vectors.js');"
        "const on = (angle) => Float32Array.of(Math.cos(angle), Math.sin(angle));"
        "const at = (degrees) => ({ degrees, vector: on((degrees * Math.PI) / 180) });"
        "const told = (distance) => { const groups = new Groups(distance);"
        "  for (const degrees of [0, 90, 20, 40, 200, 95]) groups.add(at(degrees));"
        "  return groups.lists().map((list) => list.map((one) => one.degrees)); };"
        "return [told(0.07), told(0.001), told(2)];"  # 0.07 is 21.6 degrees
    )
    assert groups[0] == [[0, 20, 40], [90, 95], [200]]
    assert groups[1] == [[0], [90], [20], [40], [200], [95]]
    assert groups[2] == [[0, 90, 20, 40, 200, 95]]


async def test_a_rank_leaves_out_what_has_no_vector_or_one_of_another_model(tab: Tab) -> None:
    await tab.go("app")
    ranked = await tab.run(
        "const { rank, vector } = await import('/app/vectors.js');"
        "const items = [{ n: 1, vector: vector('[0,1]') }, { n: 2, vector: null }, { n: 3, vector: vector([1, 0]) },"
        " { n: 4, vector: vector([1, 0, 0]) }];"
        "return rank(vector([0.8, 0.6]), items).map(({ item, score }) => [item.n, Math.round(score * 10)]);"
    )
    assert ranked == [[3, 8], [1, 6]]


async def test_batches_are_read_from_metrics_over_all_models(tab: Tab) -> None:
    await tab.go("app")
    totals = await tab.run(
        f"const {{ parse, batches }} = await import('/app/metrics.js'); const text = `{METRICS}`;"
        "return [batches(parse(text)), batches(parse('process_open_fds 12')), parse(text)[1].labels];"
    )
    assert totals == [{"batches": 5, "inputs": 12}, {"batches": 0, "inputs": 0}, {"kind": "visual", "model": 'a\\"b'}]


async def test_lanes_run_so_many_at_a_time_in_order_and_survive_failures(tab: Tab) -> None:
    await tab.go("app")
    seen = await tab.run(
        "const { Lanes } = await import('/app/lanes.js'); const lanes = new Lanes(2);"
        "let running = 0, most = 0; const order = [];"
        "const work = (n) => lanes.run(async () => { most = Math.max(most, ++running); order.push(n);"
        "  await new Promise((resolve) => setTimeout(resolve)); running--;"
        "  if (n === 1) throw new Error('no'); return n; });"
        "const results = await Promise.allSettled([0, 1, 2, 3, 4].map(work));"
        "return [most, order, results.map((one) => one.status === 'fulfilled')];"
    )
    assert seen == [2, [0, 1, 2, 3, 4], [True, False, True, True, True]]


async def test_a_library_counts_what_waits_is_done_and_failed(tab: Tab) -> None:
    await tab.go("app")
    counts = await tab.run(
        "const { Library } = await import('/app/library.js'); const library = new Library(); const seen = [];"
        "const idle = () => new Promise((done) => library.addEventListener('idle', done, { once: true }));"
        "const told = () => { const own = { waiting: 0, done: 0, failed: 0 };"
        "  for (const photo of library.photos) own[photo.state]++; seen.push([{ ...library.counts }, own]); };"
        "const canvas = new OffscreenCanvas(64, 64); canvas.getContext('2d').fillRect(0, 0, 9, 9);"
        "const source = await canvas.convertToBlob();"
        "let end = idle(); library.add(source, 'a'); library.add(source, 'b'); told(); await end; told();"
        "end = idle(); library.again(library.photos); told(); library.stop();"
        "library.add(source, 'c', AbortSignal.abort(new Error('stopped'))); await end; told();"
        "library.clear(); told(); return seen;"
    )
    assert [counted for counted, _ in counts] == [own for _, own in counts]
    assert [counted for counted, _ in counts] == [
        {"waiting": 2, "done": 0, "failed": 0},
        {"waiting": 0, "done": 2, "failed": 0},
        {"waiting": 2, "done": 0, "failed": 0},
        {"waiting": 0, "done": 0, "failed": 3},
        {"waiting": 0, "done": 0, "failed": 0},
    ]


async def test_the_same_seed_draws_the_same_pictures(tab: Tab) -> None:
    await tab.go("app")
    same = await tab.run(
        "const { pictures } = await import('/app/drawings.js');"
        "const sizes = async (seed) => { const all = [];"
        "  for await (const one of pictures(seed, 3)) all.push([one.name, one.source.size]);"
        "  return JSON.stringify(all); };"
        "const [first, again, other] = [await sizes(1), await sizes(1), await sizes(2)];"
        "return [first === again, first === other, JSON.parse(first).length];"
    )
    assert same == [True, False, 15]
