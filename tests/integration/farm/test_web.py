"""Pages, API and hooks over a real database, without a network."""

import json
import re
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import SecretStr

from converter.farm_config import FarmSettings, sqlite_url
from converter.farm_database import FarmDatabase
from converter.jobs import Outcome
from converter.web.app import web_app
from converter.web.services import Services
from converter.wish import Source, Wish

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it would rather have another HTTP library than the one this project uses
    from starlette.testclient import TestClient

REPOSITORY = "unpacked.test.local"
DIGEST = "sha256:" + "a" * 64
OUR_SCRIPT = '<script src="/static/live.js" defer></script>'
WISHLIST = f"version: 1\ncvmfs_repo: {REPOSITORY}\ninput:\n  - 'http://r.example:5000/group/tool:*'\n"
EVENT = {
    "events": [
        {
            "action": "push",
            "target": {"mediaType": "application/vnd.oci.image.manifest.v1+json", "repository": "group/tool"},
            "request": {"host": "r.example:5000"},
        }
    ]
}
DISTRIBUTION = {"Content-Type": "application/vnd.docker.distribution.events.v1+json"}


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Services]:
    database = FarmDatabase(sqlite_url(tmp_path / "farm.sqlite"))
    yield Services.of(REPOSITORY, database, FarmSettings())
    database.close()


def browser(services: Services, *, client: str = "127.0.0.1", host: str = "127.0.0.1:8480") -> TestClient:
    return TestClient(web_app(services), base_url=f"http://{host}", client=(client, 50000))


def publish(services: Services, reference: str = "http://r.example:5000/group/tool:1") -> Wish:
    wish = Wish.parse(reference)
    services.jobs.observe(REPOSITORY, {wish: DIGEST})
    claim = services.jobs.claim(services.jobs.to_send(queue_is_empty=False)[0], "me", lambda _: False)
    assert claim is not None
    outcome = Outcome(changed=True, public_path="/r.example/tool:1", flat_path="/.flat/a", revision=7, details={})
    services.jobs.finish(claim, outcome)
    return wish


def test_images_are_listed_and_found(services: Services) -> None:
    publish(services)
    web = browser(services)

    listed = web.get("/api/v1/images").json()["images"]
    assert [(image["reference"], image["state"], image["public_path"]) for image in listed] == [
        ("http://r.example:5000/group/tool:1", "done", "/r.example/tool:1")
    ]
    one = web.get("/api/v1/images/r.example:5000/group/tool:1").json()
    assert one["history"][0]["digest"] == DIGEST
    assert web.get("/api/v1/images?q=nothing").json()["images"] == []
    absent = web.get("/api/v1/images/r.example/absent:1")
    assert (absent.status_code, "knows no image" in absent.json()["error"]) == (404, True)
    assert web.get("/api/v1/jobs?state=done").json()["jobs"][0]["digest"] == DIGEST
    assert web.get("/api/v1/jobs?state=odd").status_code == 400


def test_a_conversion_can_be_asked_for_as_docker_writes_it(services: Services) -> None:
    web = browser(services)

    answer = web.post("/api/v1/conversions", json={"reference": "alpine"})

    assert answer.status_code == 202
    assert answer.json()["name"] == "docker.io/library/alpine:latest"
    assert web.get(answer.headers["location"]).json()["state"] == "wanted"
    assert services.wishes.take_hints() == [Source("docker.io", "library/alpine")]


@pytest.mark.parametrize(
    "body", ["", "[]", "{}", '{"reference": 5}', '{"reference": "a b"}', '{"reference":"r.e/x:*"}']
)
def test_what_names_no_image_is_refused(services: Services, body: str) -> None:
    answer = browser(services).post("/api/v1/conversions", content=body, headers={"Content-Type": "application/json"})

    assert answer.status_code == 400
    assert answer.json()["error"]


def test_a_wishlist_is_applied_and_its_mistakes_have_places(services: Services) -> None:
    web = browser(services)

    assert web.put("/api/v1/wishlists/physics", content=WISHLIST).json() == {"name": "physics", "changed": True}
    assert web.put("/api/v1/wishlists/physics", content=WISHLIST).json()["changed"] is False
    assert web.get("/api/v1/wishes").json()["wishlists"][0]["wishes"] == ["http://r.example:5000/group/tool:*"]
    bad = web.put("/api/v1/wishlists/physics", content="cvmfs_repo: x\ninput: [a]\n")
    assert (bad.status_code, bad.json()["mistakes"][0]["line"]) == (422, 2)
    other = web.put("/api/v1/wishlists/physics", content=WISHLIST.replace(REPOSITORY, "other.example"))
    assert "this farm publishes into" in other.json()["error"]


def test_without_a_token_only_this_machine_may_change_something(services: Services) -> None:
    body = {"reference": "r.example/a:1"}

    for web in (browser(services, client="10.0.0.9"), browser(services, host="rebound.example:8480")):
        assert web.post("/api/v1/conversions", json=body).status_code == 403
        assert web.put("/api/v1/wishlists/physics", content=WISHLIST).status_code == 403
        assert web.get("/api/v1/images").status_code == 200
    local = browser(services)
    assert local.post("/api/v1/conversions", json=body, headers={"Origin": "http://evil.example"}).status_code == 403
    assert local.post("/api/v1/conversions", content=json.dumps(body)).status_code == 415


def test_with_a_token_the_token_decides(services: Services) -> None:
    guarded = replace(services, api_token=SecretStr("sesame"))
    body = {"reference": "r.example/a:1"}

    assert browser(guarded).post("/api/v1/conversions", json=body).status_code == 401
    web = browser(guarded, client="10.0.0.9", host="farm.example")
    assert web.post("/api/v1/conversions", json=body, headers={"Authorization": "Bearer sesame"}).status_code == 202


def test_a_notification_is_stored_before_it_is_answered(services: Services) -> None:
    web = browser(services)
    web.put("/api/v1/wishlists/physics", content=WISHLIST)
    services.wishes.take_hints()

    before = time.monotonic()
    answer = web.post("/hooks/distribution", content=json.dumps(EVENT), headers=DISTRIBUTION)
    print(f"notification answered in {1000 * (time.monotonic() - before):.1f} ms")

    assert (answer.status_code, answer.json()) == (202, {"hints": 1})
    assert services.wishes.take_hints() == [Source("r.example:5000", "group/tool")]
    assert 'hook="distribution",outcome="taken"} 1' in web.get("/metrics").text


def test_notifications_of_no_interest_are_taken_too(services: Services) -> None:
    web = browser(services)

    assert web.post("/hooks/distribution", content=json.dumps(EVENT), headers=DISTRIBUTION).status_code == 202
    assert web.post("/hooks/harbor", json={"type": "SOMETHING_NEW", "event_data": {}}).status_code == 202
    assert services.wishes.take_hints() == []


def test_notifications_that_are_none_are_refused(services: Services) -> None:
    web = browser(services)

    assert web.post("/hooks/distribution", content="no", headers=DISTRIBUTION).status_code == 400
    assert web.post("/hooks/distribution", content="{}", headers={"Content-Type": "text/plain"}).status_code == 415
    assert web.post("/hooks/distribution", content=b"x" * (257 << 10), headers=DISTRIBUTION).status_code == 413


def test_the_agreed_header_is_required(services: Services) -> None:
    web = browser(replace(services, webhook_authorization=SecretStr("Bearer agreed")))
    body = json.dumps(EVENT)

    assert web.post("/hooks/distribution", content=body, headers=DISTRIBUTION).status_code == 401
    headers = {**DISTRIBUTION, "Authorization": "Bearer agreed"}
    assert web.post("/hooks/distribution", content=body, headers=headers).status_code == 202


def test_the_page_shows_states_paths_and_errors(services: Services) -> None:
    publish(services)
    failing = Wish.parse("r.example/tool:broken")
    services.jobs.observe(REPOSITORY, {failing: DIGEST})
    claim = services.jobs.claim(2, "me", lambda _: False)
    assert claim is not None
    services.jobs.fail(claim, "entry '<script>alert(1)</script>': leaves the tree", transient=False)
    services.wishes.note_source(Source("r.example", "<b>tool"), "does not answer")
    web = browser(services)

    page = web.get("/")

    assert f"/cvmfs/{REPOSITORY}/r.example/tool:1" in page.text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page.text
    assert re.findall("<script.*", page.text) == [OUR_SCRIPT]
    assert "<b>tool" not in page.text
    assert "unsafe-inline" not in page.headers["content-security-policy"]
    assert web.get("/images/r.example:5000/group/tool:1").status_code == 200
    assert web.get("/images/%3Cscript%3E").status_code == 404
    assert re.findall("<script.*", web.get("/?q=%3Cscript%3E").text) == [OUR_SCRIPT]
    assert web.get("/static/live.js").headers["content-type"].startswith("text/javascript")
    assert web.get("/static/style.css").headers["content-type"].startswith("text/css")
    assert web.get("/healthz").json() == {"status": "ok"}
