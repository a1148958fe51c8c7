"""Load tests with Locust, which finds this file by its name: .venv/bin/locust Mix. The README tells how.

Knows Locust: what each kind of user sends, the options on the command line and in the web page, and the shape that
searches for the highest load. What is sent, which answers are right, and how to search stand in scripts/load/.

Before the users begin, each input is sent once, alone, and what comes back is what every later answer to it is held
against. A user sends its next request when the last one is answered.
"""

import itertools
import logging
from argparse import Namespace
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import gevent
from locust import FastHttpUser, events, task
from locust.argument_parser import LocustArgumentParser
from locust.contrib.fasthttp import FastHttpSession, ResponseContextManager
from locust.env import Environment
from locust.event import EventHook
from locust.runners import MasterRunner, WorkerRunner

from engines import catalog
from engines.errors import UnknownModel
from scripts.bench.sentences import searches
from scripts.load import answers, inputs
from scripts.load.answers import WrongAnswer
from scripts.load.shape import HighestLoad as HighestLoad  # Locust takes the shape that it finds here
from scripts.load.shape import tell

log = logging.getLogger(__name__)

Kind = Literal["clip text", "clip image", "faces"]

HOST = "http://127.0.0.1:3003"
PHOTOS = 24
PEOPLE = 12
TEXTS = 100
FIRST_S = 600.0  # the first request loads a model, which may have to be fetched


@dataclass(slots=True)
class Input:
    """All inputs of one kind: what to ask for, the contents to send and as which field, and who checks the answers."""

    entries: dict[str, Any]
    sent_as: Literal["image", "text"]
    contents: list[bytes]
    dim: int
    right: answers.Vectors | answers.People | None = None
    turns: Iterator[int] = field(default_factory=itertools.count)

    def form(self, number: int) -> tuple[bytes, str]:
        """Return a body that was never sent before with input `number`, and its content type."""
        content = self.contents[number]
        return inputs.form(
            self.entries, self.sent_as, inputs.different(content) if self.sent_as == "image" else content
        )

    def read(self, answer: bytes) -> Any:
        """Return the vector or the faces of an answer; raises WrongAnswer."""
        if "clip" in self.entries:
            return answers.clip_vector(answer, self.dim)
        return answers.faces(answer, self.dim)


class Caller(FastHttpUser):
    """What all users have in common."""

    abstract = True
    host = HOST
    network_timeout = 300.0  # as long as Immich waits
    kinds: ClassVar[tuple[Kind, ...]]
    ready: ClassVar[dict[Kind, Input]] = {}  # set when a test begins, the same for all users
    api_key: ClassVar[str] = ""  # likewise

    def ask(self, kind: Kind) -> None:
        """Send the next input of a kind; the request fails unless the answer is right."""
        one = self.ready[kind]
        number = next(one.turns) % len(one.contents)
        with post(self.client, kind, one, number) as response:
            if response.status_code != 200:
                response.failure(unanswered(response))  # Locust would take all below 400 for success
                return
            try:
                one.right.check(one.read(response.content), number)  # type: ignore[union-attr]  # set before users begin
            except WrongAnswer as error:
                response.failure(error)


class ClipText(Caller):
    """Searches by words."""

    kinds = ("clip text",)

    @task
    def text(self) -> None:
        self.ask("clip text")


class ClipImage(Caller):
    """Indexes photos for the search."""

    kinds = ("clip image",)

    @task
    def image(self) -> None:
        self.ask("clip image")


class Faces(Caller):
    """Finds faces, with an embedding for each."""

    kinds = ("faces",)

    @task
    def people(self) -> None:
        self.ask("faces")


class Mix(Caller):
    """Indexes a library, where each photo is sent once for the search and once for its faces, while people search."""

    kinds = ("clip text", "clip image", "faces")

    @task(2)
    def text(self) -> None:
        self.ask("clip text")

    @task(4)
    def image(self) -> None:
        self.ask("clip image")

    @task(4)
    def people(self) -> None:
        self.ask("faces")


def post(session: FastHttpSession, kind: Kind, one: Input, number: int) -> ResponseContextManager:
    """Send input `number` to be entered as a context, whose end reports it."""
    body, content_type = one.form(number)
    return session.post(
        "/predict",
        data=body,  # type: ignore[arg-type]  # bytes are sent as they are
        headers={"Content-Type": content_type, **({"x-api-key": Caller.api_key} if Caller.api_key else {})},
        name=kind,
        catch_response=True,
    )


def unanswered(response: ResponseContextManager) -> Exception:
    """Return what is wrong with a response that is not 200: what Locust says, which has nothing below 400."""
    return getattr(response, "error", None) or WrongAnswer(f"its status is {response.status_code}, not 200")


@events.init_command_line_parser.add_listener
def add_options(parser: LocustArgumentParser) -> None:
    """Add what can be chosen; Locust's page asks for the same. Its --help has none of it, so that the README does."""
    add = parser.add_argument  # in a group of their own they would not be on the page
    add("--api-key", default="", env_var="FACET_API_KEY", is_secret=True, help="API key that the server asks for")
    add("--clip-model", default=catalog.DEMO, help="CLIP model to ask for")
    add("--face-model", default=catalog.DEMO, help="face model to ask for")
    add("--face-min-score", type=float, default=0.7, help="least score of a face, 0 to 1")
    add("--photos", default="", help="folder of pictures to send; without it generated and bundled ones are")
    add("--image-size", type=int, default=1440, help="longer side of the photos in pixels")
    add("--least-cosine", type=float, default=0.99, help="of an answer to that of the same input alone: less is wrong")
    add("--within-ms", type=float, default=0.0, help="search the most users that are answered so fast; 0: no search")
    add("--percentile", type=float, default=95.0, help="share of the requests that must be, in percent")
    add("--step-s", type=float, default=10.0, help="seconds that each number of users is measured for in a search")
    add("--most-users", type=int, default=1024, help="users at which a search ends")


@events.init.add_listener
def tell_at_the_end(environment: Environment, **_: Any) -> None:
    """Print what a search has found below Locust's own statistics."""
    environment.events.quit.add_listener(lambda **_: tell(environment.shape_class))


@events.test_start.add_listener
def prepare(environment: Environment, **_: Any) -> None:
    """Make the inputs and learn their right answers; end the test if there are none."""
    runner = environment.runner
    if runner is None or isinstance(runner, MasterRunner):
        return  # it has no users
    environment.process_exit_code = None
    options = environment.parsed_options or Namespace(api_key="")
    Caller.api_key = options.api_key
    callers = [user for user in environment.user_classes if issubclass(user, Caller)]
    wanted = dict.fromkeys(kind for caller in callers for kind in caller.kinds)
    try:
        Caller.ready = {kind: learnt(kind, options, environment.host or HOST) for kind in wanted}
    except (UnknownModel, WrongAnswer, ValueError) as error:
        log.error("The test does not begin: %s", error)
        environment.process_exit_code = 1
        gevent.spawn(runner.quit if options.headless or isinstance(runner, WorkerRunner) else runner.stop)
        raise gevent.GreenletExit from error  # no users are started; Locust's own StopTest comes with a traceback
    environment.stats.reset_all()  # requests per second count from here on


def learnt(kind: Kind, options: Namespace, host: str) -> Input:
    """Return the inputs of a kind with their right answers, of which each is asked for alone.

    Raises UnknownModel, ValueError for a wrong folder, WrongAnswer if there is no answer or it cannot be right.
    """
    one = made(kind, options)
    log.info("%s: asking for the right answers to %d inputs, one after the other", kind, len(one.contents))
    session = FastHttpSession(host, EventHook(), user=None, network_timeout=FIRST_S, connection_timeout=10.0)
    right = [one.read(answered(session, kind, one, number)) for number in range(len(one.contents))]
    checks = answers.People if kind == "faces" else answers.Vectors
    one.right = checks(right, options.least_cosine)
    return one


def answered(session: FastHttpSession, kind: Kind, one: Input, number: int) -> bytes:
    """Return the answer to input `number`; raises WrongAnswer if there is none, with what the server says."""
    with post(session, kind, one, number) as response:
        if response.status_code == 200:
            return bytes(response.content)
        said = response.content.decode(errors="replace") if response.content else repr(unanswered(response))
        raise WrongAnswer(f"{kind}: no answer from {session.base_url}: {response.status_code} {said}")


def made(kind: Kind, options: Namespace) -> Input:
    """Return the inputs of a kind; raises UnknownModel, ValueError for a folder without pictures."""
    clip, face = options.clip_model, options.face_model
    if kind == "clip text":
        contents = [text.encode() for text in searches(TEXTS)]
        return Input({"clip": {"textual": {"modelName": clip}}}, "text", contents, catalog.clip(clip).dim)
    if kind == "clip image":
        pictures = drawn(options, inputs.photos(PHOTOS, options.image_size), PHOTOS)
        return Input({"clip": {"visual": {"modelName": clip}}}, "image", pictures, catalog.clip(clip).dim)
    entries = {
        "detection": {"modelName": face, "options": {"minScore": options.face_min_score}},
        "recognition": {"modelName": face},
    }
    pictures = drawn(options, inputs.people(PEOPLE, options.image_size), PEOPLE)
    return Input({"facial-recognition": entries}, "image", pictures, catalog.face(face).dim)


def drawn(options: Namespace, pictures: Iterable[bytes], count: int) -> list[bytes]:
    """Return `pictures`, or those of one's own folder, letting Locust do its other work between them."""
    if options.photos:
        pictures = inputs.own(Path(options.photos).expanduser(), count, options.image_size)
    made = []
    for picture in pictures:
        made.append(picture)
        gevent.sleep(0)
    return made
