"""The status page, for people: rendered here; one script keeps it up to date where scripts are allowed."""

import time
from pathlib import Path
from urllib.parse import quote

import jinja2
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.routing import Route

from converter.errors import JobAbsentError
from converter.farm_views import ImageView
from converter.job_rules import ImageState
from converter.terms import Policy
from converter.web.services import Services

_FOLDER = Path(__file__).parent
_SHOWN_IMAGES = 500
_BUSY_REFRESH_S, _IDLE_REFRESH_S = 3, 10
_MINUTE_S, _HOUR_S, _DAY_S = 60, 3600, 86400
_MEGABYTE = 1e6


class Pages:
    """Handlers of pages."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._templates = jinja2.Environment(
            loader=jinja2.FileSystemLoader(_FOLDER / "templates"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters.update(age=age, progress=progress, short=short_digest, link=image_link, kept=kept)

    def routes(self) -> list[Route]:
        """Where each handler is."""
        return [
            Route("/", self.overview),
            Route("/images/{reference:path}", self.image),
            Route("/static/style.css", self.style),
            Route("/static/live.js", self.script),
        ]

    def overview(self, request: Request) -> Response:
        """All images, with their states."""
        search = request.query_params.get("q", "")
        images = self._services.views.images(search=search, limit=_SHOWN_IMAGES + 1)
        counts = {state: sum(image.state is state for image in images) for state in ImageState}
        busy = counts[ImageState.QUEUED] + counts[ImageState.RUNNING] > 0
        return self._page(
            "overview.html",
            images=images[:_SHOWN_IMAGES],
            more=len(images) > _SHOWN_IMAGES,
            counts=counts,
            search=search,
            revision=max((image.revision or 0 for image in images), default=0),
            troubles=[state for state in self._services.wishes.source_states() if state.error],
            refresh_s=_BUSY_REFRESH_S if busy else _IDLE_REFRESH_S,
        )

    def image(self, request: Request) -> Response:
        """Everything about one image."""
        try:
            image = self._services.views.image(request.path_params["reference"])
        except JobAbsentError as error:
            return self._page("absent.html", status=404, error=str(error), refresh_s=_IDLE_REFRESH_S)
        busy = image.state in (ImageState.QUEUED, ImageState.RUNNING)
        changes = self._services.views.tag_history(image)
        refresh_s = _BUSY_REFRESH_S if busy else _IDLE_REFRESH_S
        return self._page("image.html", image=image, changes=changes, refresh_s=refresh_s)

    def style(self, _request: Request) -> Response:
        """The style sheet."""
        return FileResponse(_FOLDER / "static" / "style.css", media_type="text/css")

    def script(self, _request: Request) -> Response:
        """What keeps an open page up to date."""
        return FileResponse(_FOLDER / "static" / "live.js", media_type="text/javascript")

    def _page(self, template: str, *, status: int = 200, **values: object) -> Response:
        now = time.time()
        text = self._templates.get_template(template).render(repository=self._services.repository, now=now, **values)
        return HTMLResponse(text, status)


def age(then: float | None, now: float) -> str:
    """How long ago *then* was, in the largest unit that says something."""
    if then is None:
        return "never"
    seconds = max(0, int(now - then))
    if seconds < _MINUTE_S:
        return f"{seconds} s ago"
    if seconds < _HOUR_S:
        return f"{seconds // _MINUTE_S} min ago"
    return f"{seconds // _HOUR_S} h ago" if seconds < _DAY_S else f"{seconds // _DAY_S} d ago"


def progress(image: ImageView) -> str:
    """How far a running conversion is, in a few words."""
    facts = image.progress if isinstance(image.progress, dict) else {}
    words = [str(facts.get("stage", ""))]
    if facts.get("layers_total"):
        words.append(f"{facts.get('layers_done', 0)} of {facts['layers_total']} layers")
    if facts.get("bytes_total"):
        words.append(f"{facts.get('bytes_fetched', 0) / _MEGABYTE:.0f} of {facts['bytes_total'] / _MEGABYTE:.0f} MB")
    return ", ".join(word for word in words if word)


def short_digest(digest: str | None) -> str:
    """The first digits of a digest."""
    return "" if digest is None else digest.partition(":")[2][:12]


def kept(image: ImageView) -> str:
    """What becomes of the path when the tag comes to name another digest."""
    match Policy(image.policy):
        case Policy.FOLLOW:
            return "follows the tag; what it named before stays for a while"
        case Policy.PIN:
            return "stays with what the tag named first"
        case Policy.ARCHIVE:
            return "follows the tag; what it named before stays for good"


def image_link(image: ImageView) -> str:
    """Address of the image's page."""
    return "/images/" + quote(image.name, safe="/:@")
