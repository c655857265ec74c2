"""A small web of real documents: full-text search and fetching, over HTTP.

    GET /search?q=WORDS[&limit=N]  ->  {"query", "hits": [{name, title, score, snippet}]}
    GET /documents                 ->  {"documents": [{name, title}]}
    GET /documents/NAME            ->  {name, title, text}

A separate process (`python -m examples.document_server`), which stands for the outside
world that an agent's tools reach. Imports nothing of Paidonce.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from socket import socket
from urllib.parse import parse_qs, unquote, urlsplit

from examples.json_http import JsonHandler, JsonServer, argument_parser, serve_until_stopped
from examples.text_ranking import best, scores, sentences

DOCUMENTS_FOLDER = Path(__file__).parent / "documents"
DEFAULT_LIMIT = 5
MAXIMUM_LIMIT = 50


@dataclass(frozen=True, kw_only=True)
class Document:
    """One article: its address in this server, its title and its whole text."""

    name: str
    title: str
    text: str


class Library:
    """All documents of a folder, read once and never changed."""

    def __init__(self, folder: Path = DOCUMENTS_FOLDER) -> None:
        """Read every .txt file; the first line is the title."""
        self._documents: dict[str, Document] = {}
        for path in sorted(folder.glob("*.txt")):
            text = path.read_text(encoding="utf-8")
            title = text.partition("\n")[0].strip()
            self._documents[path.stem] = Document(name=path.stem, title=title, text=text)

    def all(self) -> list[Document]:
        """Every document, by name."""
        return list(self._documents.values())

    def find(self, name: str) -> Document | None:
        """The document of that name, or None."""
        return self._documents.get(name)

    def search(self, query: str, limit: int) -> list[dict[str, object]]:
        """The best documents for a query, each with the sentence that matches best."""
        documents = self.all()
        texts = [document.text for document in documents]
        rated = scores(query, texts)
        return [
            {
                "name": documents[index].name,
                "title": documents[index].title,
                "score": round(rated[index], 3),
                "snippet": _snippet(query, texts[index]),
            }
            for index in best(query, texts, limit)
        ]


def _snippet(query: str, text: str) -> str:
    candidates = sentences(text)
    found = best(query, candidates, 1)
    return candidates[found[0]] if found else candidates[0]


class DocumentHandler(JsonHandler):
    """Maps the three addresses of this server to the library."""

    def __init__(self, request: socket, client_address: tuple[str, int], server: JsonServer, library: Library) -> None:
        """Take the library before the base class handles the request in its constructor."""
        self._library = library
        super().__init__(request, client_address, server)

    def do_GET(self) -> None:
        """Respond to a search, a list or a document."""
        address = urlsplit(self.path)
        if address.path == "/search":
            self._search(parse_qs(address.query))
        elif address.path == "/documents":
            documents = [{"name": d.name, "title": d.title} for d in self._library.all()]
            self.answer(200, {"documents": documents})
        elif address.path.startswith("/documents/"):
            self._document(unquote(address.path.removeprefix("/documents/")))
        else:
            self.answer(404, {"error": f"no such address: {address.path}"})

    def _search(self, parameters: dict[str, list[str]]) -> None:
        query = parameters.get("q", [""])[0].strip()
        limit = parameters.get("limit", [str(DEFAULT_LIMIT)])[0]
        if not query:
            self.answer(400, {"error": "the parameter q is missing; ask /search?q=WORDS"})
        elif not limit.isdigit() or not 1 <= int(limit) <= MAXIMUM_LIMIT:
            self.answer(400, {"error": f"limit must be 1 to {MAXIMUM_LIMIT}, not {limit!r}"})
        else:
            self.answer(200, {"query": query, "hits": self._library.search(query, int(limit))})

    def _document(self, name: str) -> None:
        document = self._library.find(name)
        if document is None:
            self.answer(404, {"error": f"no document named {name!r}"})
        else:
            self.answer(200, {"name": document.name, "title": document.title, "text": document.text})


def create_server(host: str = "127.0.0.1", port: int = 0) -> JsonServer:
    """A document server bound to its port but not yet serving."""
    return JsonServer((host, port), partial(DocumentHandler, library=Library()))


def main() -> None:
    """Serve the documents until SIGTERM or Ctrl-C."""
    options = argument_parser("Serve the example documents.").parse_args()
    serve_until_stopped(create_server(options.host, options.port))


if __name__ == "__main__":
    main()
