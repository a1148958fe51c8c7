"""The page at /app in a real browser: photos come in, faces and people are drawn, words find photos."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
import skimage.data
from PIL import Image
from playwright.async_api import FilePayload, expect

from tests.browser.tab import Tab

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="package")]

GENERATED = 48
MANY = 3000
LARGEST = 400_000  # bytes of a screenshot


def photo(name: str) -> Path:
    return Path(skimage.data.data_dir, name)


@pytest_asyncio.fixture(loop_scope="package")
async def filled(tab: Tab) -> Tab:
    """A tab with the generated pictures, all done."""
    await tab.go("app")
    await tab.button("Try with generated pictures").click()
    await tab.until_done(GENERATED)
    await expect(tab.find("#groups button")).to_have_text(["3 photos"] * 4)
    return tab


async def shoot(tab: Tab, folder: Path | None, name: str) -> None:
    """Write a screenshot where one is wanted; it must be small enough for a repository."""
    if folder is None:
        return
    await expect(tab.find("#waiting")).to_have_text("0")  # looked at once per second
    await tab.page.mouse.move(0, 0)
    picture = Image.open(io.BytesIO(await tab.page.screenshot()))
    path = folder / name
    picture.convert("RGB").save(path, optimize=True)
    assert path.stat().st_size < LARGEST


async def test_generated_pictures_show_all_that_the_page_does(filled: Tab, screenshots: Path | None) -> None:
    tab = filled
    assert await tab.find("#grid .tile img").count() == GENERATED
    scores = await tab.find("#grid .face span").all_inner_texts()
    assert len(scores) == 12
    assert all(0.7 <= float(score) <= 1 for score in scores)
    await expect(tab.find("#people-count")).to_have_text("4 seen more than once")
    await expect(tab.find("#people-note")).to_contain_text("demo finds faces, but has not learned to tell people apart")
    await expect(tab.find("#speed")).not_to_have_text("0")
    await expect(tab.find("#batch")).to_have_text(re.compile(r"[1-9]\d*\.\d"))
    assert await tab.find("#chart polyline").count() == 1
    assert await tab.find("#chart .batch").count() >= 1
    await expect(tab.find("#loaded")).to_contain_text("cpu, eager float32")
    await shoot(tab, screenshots, "page-desktop.png")


async def test_words_find_the_picture_they_describe(filled: Tab) -> None:
    tab = filled
    for words in ("a large red circle", "three blue stars", "a large yellow heart"):
        found = await tab.search(words)
        assert found[0].startswith(words)
        assert len(found) == GENERATED
    scores = [float(label.rsplit(" ", 1)[1]) for label in found]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > scores[10]
    await tab.button("three blue stars").click()
    await expect(tab.find("#photos-count")).to_contain_text("three blue stars")
    assert (await tab.labels())[0].startswith("three blue stars")
    await tab.button("Show all").click()
    assert await tab.find("#words").input_value() == ""
    assert all("score" not in label for label in await tab.labels())


async def test_a_person_narrows_the_photos_and_the_distance_changes_who_is_one(filled: Tab) -> None:
    tab = filled
    await tab.find("#groups button").first.click()
    labels = await tab.labels()
    assert len(labels) == 3
    assert len({label.split(",")[0] for label in labels}) == 1, "three portraits of one person"
    await tab.find("#groups [aria-pressed='true']").click()
    await expect(tab.find("#grid .tile")).to_have_count(GENERATED)
    await tab.find("#distance").fill("1")
    await expect(tab.find("#people-count")).to_have_text("1 person seen more than once")


async def test_a_photo_opens_with_its_faces_and_what_is_like_it(filled: Tab) -> None:
    tab = filled
    await tab.find("#grid .tile").filter(has=tab.find(".face")).first.click()
    viewer = tab.page.get_by_role("dialog")
    await expect(viewer).to_be_visible()
    name = await tab.find("#viewer-title").inner_text()
    assert name.startswith("Portrait")
    assert await tab.find("#frame .face span").count() == 1
    await expect(tab.find("#viewer-facts")).to_have_text("384 × 480 pixels as sent, 1 face, a vector of 256 numbers")
    similar = [await one.get_attribute("aria-label") or "" for one in await tab.find("#similar button").all()]
    assert len(similar) == 8
    assert all(one.startswith("Portrait") for one in similar[:6])
    await tab.find("#similar button").first.click()
    assert similar[0].startswith(await tab.find("#viewer-title").inner_text())
    await tab.page.keyboard.press("Escape")
    await expect(viewer).to_be_hidden()


async def test_a_folder_is_dropped_and_what_cannot_be_read_says_so(tab: Tab, tmp_path: Path) -> None:
    inner = tmp_path / "holiday" / "day 1"
    inner.mkdir(parents=True)
    for name in ("astronaut.png", "chelsea.png", "coffee.png"):
        (inner / name).write_bytes(photo(name).read_bytes())
    (inner / "broken.jpg").write_bytes(b"\xff\xd8 no more than a beginning")
    (inner / "notes.txt").write_text("not a picture")
    await tab.go("app")
    await tab.drop([tmp_path / "holiday"])
    await tab.until_done(4, failed=1)
    broken = tab.find("#grid .tile.failed")
    await expect(broken.locator(".error")).to_contain_text("These bytes cannot be read as a picture")
    await expect(tab.page.get_by_role("button", name="astronaut.png, 1 face")).to_be_visible()
    assert await drawn(tab) == pytest.approx(await told(tab, photo("astronaut.png").read_bytes()), abs=0.01)
    assert tab.refused == ["400 /predict"]
    assert (await tab.search("a photo of a cat"))[0].startswith("chelsea.png")
    assert (await tab.search("a cup of coffee"))[0].startswith("coffee.png")
    await tab.button("Show all").click()
    await tab.button("1 failed").click()
    assert [label.split(",")[0] for label in await tab.labels()] == ["broken.jpg"]
    await tab.button("Try again").click()
    await tab.until_done(4, failed=1)
    tab.refused.clear()
    await tab.button("Remove all").click()
    await expect(tab.button("Try with generated pictures")).to_be_visible()
    assert await tab.find("#grid .tile").count() == 0


async def told(tab: Tab, picture: bytes) -> list[float]:
    """Return left, top, right and bottom of the only face, in shares of the picture, as the server tells any client."""
    entries = '{"facial-recognition": {"detection": {"modelName": "demo"}}}'
    image: FilePayload = {"name": "blob", "mimeType": "application/octet-stream", "buffer": picture}
    response = await tab.page.request.post(f"{tab.address}predict", multipart={"entries": entries, "image": image})
    answer = await response.json()
    (face,) = answer["facial-recognition"]
    sides = {"x": answer["imageWidth"], "y": answer["imageHeight"]}
    return [face["boundingBox"][side] / sides[side[0]] for side in ("x1", "y1", "x2", "y2")]


async def drawn(tab: Tab) -> list[float]:
    """Return left, top, right and bottom of the only face, in shares of its tile."""
    box = await tab.run(
        "const face = document.querySelector('#grid .face').getBoundingClientRect();"
        "const tile = document.querySelector('#grid .face').closest('.tile').getBoundingClientRect();"
        "return [(face.left - tile.left) / tile.width, (face.top - tile.top) / tile.height,"
        " (face.right - tile.left) / tile.width, (face.bottom - tile.top) / tile.height];"
    )
    assert isinstance(box, list)
    return box


async def test_a_photo_that_exif_turns_is_sent_upright_and_a_large_one_small(tab: Tab, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    lying = Image.open(photo("astronaut.png")).convert("RGB").resize((3000, 2400)).transpose(Image.Transpose.ROTATE_90)
    lying.save(tmp_path / "turned.jpg", exif=exif)
    await tab.go("app")
    await tab.find("#files").set_input_files(tmp_path / "turned.jpg")
    await tab.until_done(1)
    await expect(tab.find("#grid .face")).to_have_count(1)
    await tab.find("#grid .tile").click()
    await expect(tab.find("#viewer-facts")).to_contain_text("1440 × 1152 pixels as sent, 1 face")


@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
async def test_a_small_picture_that_its_file_turns_is_sent_as_it_is_shown_whatever_its_format(
    tab: Tab, tmp_path: Path, ending: str
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = Image.open(photo("astronaut.png")).convert("RGB").resize((500, 400)).transpose(Image.Transpose.ROTATE_90)
    lying.save(tmp_path / f"small.{ending}", exif=exif)
    await tab.go("app")
    await tab.find("#files").set_input_files(tmp_path / f"small.{ending}")
    await tab.until_done(1)
    await tab.find("#grid .tile").click()
    shown = await tab.run(
        "const image = document.querySelector('#frame img'); await image.decode();"
        "return [image.naturalWidth, image.naturalHeight];"
    )
    await expect(tab.find("#viewer-facts")).to_contain_text(f"{shown[0]} × {shown[1]} pixels as sent, 1 face")
    assert ending == "webp" or shown == [500, 400], "browsers need not turn WebP"


async def test_many_photos_go_a_few_at_a_time_and_leave_nothing_large_behind(tab: Tab, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{number:02}.jpg" for number in range(60)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize((1600, 1200)).save(path, quality=70)
    await tab.go("app")
    await tab.find("#files").set_input_files(paths)
    await tab.button("Stop").click()
    await expect(tab.find("#state")).to_contain_text("60 photos done, ")
    await expect(tab.find("#grid .error").first).to_have_text("Stopped: it was not sent.")
    await tab.button("Try again").click()
    await tab.until_done(60)
    assert 2 <= tab.most <= 5
    sides = await tab.run(
        "const images = [...document.querySelectorAll('#grid img')];"
        "return images.map((image) => Math.max(image.naturalWidth, image.naturalHeight));"
    )
    assert len(sides) == 60
    assert max(sides) <= 400


async def test_thousands_of_photos_do_not_stop_the_page(tab: Tab) -> None:
    await tab.go("app")
    await expect(tab.find("#clip")).to_have_value("demo")
    # The state is written once for all photos that come between two frames, and they come in slices.
    changes = await tab.run(
        "const files = new DataTransfer(); const input = document.getElementById('files');"
        f"for (let n = 0; n < {MANY}; n++) files.items.add(new File([`photo ${{n}}`], `${{n}}.jpg`));"
        "const state = document.getElementById('state'); let changes = 0, frames = 0, over = false;"
        "new MutationObserver(() => changes++).observe(state, { childList: true });"
        "const frame = () => { frames++; if (!over) requestAnimationFrame(frame); }; frame();"
        "input.files = files.files; input.dispatchEvent(new Event('change'));"
        f"while (!state.textContent.includes('of {MANY} done')) await new Promise(requestAnimationFrame);"
        "over = true; return { changes, frames };"
    )
    assert 1 < changes["changes"] <= changes["frames"]
    assert await tab.find("#grid .tile").count() == 240
    await tab.button("Stop").click()
    await expect(tab.find("#state")).to_contain_text(f"{MANY} photos done, ")
    assert set(tab.refused) <= {"400 /predict"}
    tab.refused.clear()


async def test_another_model_looks_at_all_photos_again(tab: Tab) -> None:
    await tab.go("app")
    await tab.find("#files").set_input_files(photo("astronaut.png"))
    await tab.until_done(1)
    await tab.find("#face").select_option("facenet-vggface2")
    await tab.until_done(1, failed=1)
    await expect(tab.find("#grid .error")).to_contain_text("facenet-vggface2")
    assert tab.refused == ["503 /predict"]
    tab.refused.clear()
    await expect(tab.find("#people")).to_be_hidden()
    await tab.find("#face").select_option("demo")
    await tab.until_done(1)
    await expect(tab.find("#grid .face")).to_have_count(1)


async def test_all_can_be_done_by_keyboard(tab: Tab) -> None:
    await tab.go("app")
    await expect(tab.find("#clip")).to_have_value("demo")
    for _ in range(10):
        await tab.page.keyboard.press("Tab")
        if await tab.run("return document.activeElement.id") == "generate":
            break
    await tab.page.keyboard.press("Enter")
    await tab.until_done(GENERATED)
    await tab.page.keyboard.press("/")
    await tab.page.keyboard.type("a large red circle")
    await expect(tab.find("#photos-count")).to_contain_text("a large red circle")
    await tab.find("#grid .tile").first.focus()
    await tab.page.keyboard.press("ArrowRight")
    await tab.page.keyboard.press("ArrowDown")
    await tab.page.keyboard.press("ArrowUp")
    labels = await tab.labels()
    own = "return document.activeElement.getAttribute('aria-label')"
    assert await tab.run(own) == labels[1]
    await tab.page.keyboard.press("Home")
    await tab.page.keyboard.press("Enter")
    await expect(tab.page.get_by_role("dialog")).to_be_visible()
    await tab.page.keyboard.press("ArrowRight")
    assert labels[1].startswith(await tab.find("#viewer-title").inner_text())
    await tab.page.keyboard.press("Escape")
    assert await tab.run(own) == labels[0]
    assert await tab.find("#grid [tabindex='0']").count() == 1

    # At the last photo there is no next one, and a similar one takes the place of its own button: the keyboard stays.
    title, inside = (
        tab.find("#viewer-title"),
        "return document.getElementById('viewer').contains(document.activeElement)",
    )
    names = [label.split(",")[0] for label in labels]
    await tab.page.keyboard.press("End")
    await tab.page.keyboard.press("Enter")
    await tab.page.keyboard.press("ArrowLeft")
    await expect(title).to_have_text(names[-2])
    await tab.find("#next").focus()
    for _ in range(2):
        await tab.page.keyboard.press("Enter")
        await expect(title).to_have_text(names[-1])
        assert await tab.run(inside)
    await tab.page.keyboard.press("ArrowLeft")
    await expect(title).to_have_text(names[-2])
    similar = tab.find("#similar button").first
    name = (await similar.get_attribute("aria-label") or "").rsplit(",", 1)[0]
    await similar.focus()
    await tab.page.keyboard.press("Enter")
    await expect(title).to_have_text(name)
    assert await tab.run(inside)


async def test_on_a_phone_nothing_is_wider_than_the_screen(phone: Tab, screenshots: Path | None) -> None:
    await phone.go("app")
    await expect(phone.find("#panel")).to_be_hidden()
    await phone.button("Try with generated pictures").click()
    await phone.until_done(GENERATED)
    await expect(phone.find("#groups button")).to_have_text(["3 photos"] * 4)
    await shoot(phone, screenshots, "page-phone.png")
    too_wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert await phone.run(too_wide) == 0
    await phone.button("Server").click()
    await expect(phone.find("#panel")).to_be_visible()
    assert await phone.run(too_wide) == 0
    await phone.button("Server").click()
    await phone.find("#grid .tile").first.click()
    assert await phone.run("return document.getElementById('viewer').scrollWidth") <= 390
    dark = await phone.run("return getComputedStyle(document.body).backgroundColor")
    assert dark == "rgb(18, 19, 23)"


async def test_every_control_has_a_name(filled: Tab) -> None:
    nameless = await filled.run(
        "return [...document.querySelectorAll('button, input, select')].filter((one) => !one.hidden)"
        ".filter((one) => !(one.textContent.trim() || one.ariaLabel || one.labels?.length))"
        ".map((one) => one.outerHTML)"
    )
    assert nameless == []
