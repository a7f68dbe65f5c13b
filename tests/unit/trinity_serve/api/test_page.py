"""The page's files: what is sent, under which policy, and what they must not contain."""

from __future__ import annotations

import re
import tomllib
from collections.abc import AsyncIterator
from pathlib import PurePath

import httpx
import pytest
from fastapi import FastAPI

from tests.architecture.source import ROOT
from trinity_serve.api.errors import install_error_handlers
from trinity_serve.api.page import PageFile, is_page, page_files, page_router

MAX_BYTES = 300_000
FILES = page_files()
TEXTS = {name: file.body.decode() for name, file in FILES.items()}
SCRIPTS = {name: text for name, text in TEXTS.items() if name.endswith(".js")}
INDEX = TEXTS["index.html"]
PARSES_MARKUP = re.compile(
    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|createContextualFragment"
    r"|setHTML|srcdoc|\beval\(|new Function|setAttribute\(.style"
)
HOST = re.compile(r"(?:https?:)?//[\w-]+\.[\w.-]+")


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    app = FastAPI()
    install_error_handlers(app)
    app.include_router(page_router())
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


async def test_the_root_is_the_page(http: httpx.AsyncClient) -> None:
    answer = await http.get("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.text == INDEX


@pytest.mark.parametrize("name", sorted(FILES))
async def test_each_file_is_sent_with_its_type_and_the_policy(
    http: httpx.AsyncClient, name: str
) -> None:
    answer = await http.get(f"/page/{name}")
    assert answer.status_code == 200
    assert answer.content == FILES[name].body
    assert answer.headers["content-type"] == FILES[name].media_type
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"


async def test_a_file_that_the_browser_has_is_not_sent_again(http: httpx.AsyncClient) -> None:
    tag = (await http.get("/")).headers["etag"]
    again = await http.get("/", headers={"If-None-Match": tag})
    assert (again.status_code, again.content) == (304, b"")
    assert "content-security-policy" in again.headers
    other = await http.get("/", headers={"If-None-Match": '"another"'})
    assert other.status_code == 200


async def test_the_head_of_the_page_can_be_asked_for(http: httpx.AsyncClient) -> None:
    answer = await http.head("/")
    assert (answer.status_code, answer.content) == (200, b"")


@pytest.mark.parametrize(
    "path", ["/page/", "/page/nothing.js", "/page/..%2Fapp.py", "/page/../app.py", "/page/a/b.js"]
)
async def test_nothing_else_is_read_from_the_disk(http: httpx.AsyncClient, path: str) -> None:
    assert (await http.get(path)).status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/", True),
        ("HEAD", "/page/main.js", True),
        ("POST", "/", False),
        ("GET", "/v1/models", False),
        ("GET", "/pages", False),
    ],
)
def test_only_reading_the_page_counts_as_the_page(method: str, path: str, expected: bool) -> None:
    assert is_page(method, path) is expected


def test_all_of_it_is_small() -> None:
    assert sum(len(file.body) for file in FILES.values()) <= MAX_BYTES


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_no_file_names_another_host(name: str) -> None:
    assert set(HOST.findall(TEXTS[name])) <= {"http://www.w3.org"}  # the name of SVG


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_no_script_makes_markup_or_code_of_text(name: str) -> None:
    assert PARSES_MARKUP.findall(SCRIPTS[name]) == []


def test_the_page_has_no_code_or_style_of_its_own() -> None:
    assert re.findall(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", INDEX) == []


def test_everything_that_a_file_loads_is_there() -> None:
    loaded = set(re.findall(r'(?:href|src)="page/([^"]+)"', INDEX))
    for text in SCRIPTS.values():
        loaded |= set(re.findall(r'from "\./([^"]+)"', text))
    assert loaded
    assert loaded <= FILES.keys()
    assert FILES.keys() - loaded == {"index.html"}


def test_each_element_that_scripts_ask_for_is_on_the_page() -> None:
    asked = {name for text in SCRIPTS.values() for name in re.findall(r'byId\("([\w-]+)"\)', text)}
    assert asked
    assert asked <= set(re.findall(r'\bid="([\w-]+)"', INDEX))


def test_files_that_differ_have_tags_that_differ() -> None:
    assert len({file.etag for file in FILES.values()}) == len(FILES)
    assert isinstance(FILES["main.js"], PageFile)


def test_every_kind_of_file_is_installed_with_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf8"))
    installed = project["tool"]["setuptools"]["package-data"]["*"]
    assert {f"*{PurePath(name).suffix}" for name in FILES} <= set(installed)
