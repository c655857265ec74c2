"""The document server finds and hands out real text."""

from collections.abc import Iterator

import httpx
import pytest

from examples.document_server import create_server
from tests.examples.serving import serving


@pytest.fixture
def documents() -> Iterator[httpx.Client]:
    """A client of a running document server."""
    with serving(create_server()) as url, httpx.Client(base_url=url) as client:
        yield client


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("Malcom McLean Ideal X", "shipping-container"),
        ("frozen meat from New Zealand", "refrigerated-ships"),
        ("Fresnel lenses", "lighthouses"),
        ("Harrison's chronometer", "longitude"),
        ("dock labour unions and guaranteed income", "longshoremen"),
    ],
)
def test_search_puts_the_document_about_it_first(documents: httpx.Client, query: str, expected: str) -> None:
    hits = documents.get("/search", params={"q": query}).json()["hits"]
    assert hits[0]["name"] == expected
    assert hits[0]["score"] > 0
    assert hits[0]["snippet"].endswith(".")


def test_search_for_words_that_occur_nowhere_finds_nothing(documents: httpx.Client) -> None:
    assert documents.get("/search", params={"q": "zzyzx quark"}).json()["hits"] == []


def test_limit_bounds_the_hits(documents: httpx.Client) -> None:
    found = documents.get("/search", params={"q": "ships", "limit": 2}).json()
    assert len(found["hits"]) == 2


@pytest.mark.parametrize("parameters", [{}, {"q": " "}, {"q": "ship", "limit": "many"}])
def test_search_that_makes_no_sense_is_refused(documents: httpx.Client, parameters: dict[str, str]) -> None:
    response = documents.get("/search", params=parameters)
    assert response.status_code == 400
    assert response.json()["error"]


def test_every_listed_document_can_be_fetched_whole(documents: httpx.Client) -> None:
    listed = documents.get("/documents").json()["documents"]
    assert len(listed) == 12
    for entry in listed:
        document = documents.get(f"/documents/{entry['name']}").json()
        assert document["title"] == entry["title"]
        assert len(document["text"].split()) > 250


@pytest.mark.parametrize("name", ["unheard-of", "../document_server.py", "%2e%2e%2fREADME"])
def test_a_document_that_is_not_there_is_a_404(documents: httpx.Client, name: str) -> None:
    assert documents.get(f"/documents/{name}").status_code == 404
