"""URLs as they may be shown."""

import pytest

from results.urls import without_password


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:secret@host:5432/studies", "postgresql://me:***@host:5432/studies"),
        ("postgresql://me:p@ss@host/studies", "postgresql://me:***@host/studies"),
        ("postgresql://me:p:a/s?s#@host/studies", "postgresql://me:***@host/studies"),
        ("postgresql://me@corp:secret@host/studies", "postgresql://me@corp:***@host/studies"),
        ("postgresql+psycopg://me:1/2@host:5432/studies", "postgresql+psycopg://me:***@host:5432/studies"),
        ("redis://:secret@host", "redis://:***@host"),
        ("s3://AKIA0:sec/ret+1=@bucket/run", "s3://AKIA0:***@bucket/run"),
        ("postgresql://host/studies?user=me&password=secret&x=1", "postgresql://host/studies?user=me&password=***&x=1"),
        ("postgresql://host:5432/studies?password=p@s:s/", "postgresql://host:5432/studies?password=***"),
        ("postgresql://host/studies?sslpassword=secret", "postgresql://host/studies?sslpassword=***"),
        ("s3://bucket/run?access_key=AKIA0&secret_key=sec/ret", "s3://bucket/run?access_key=***&secret_key=***"),
        ("abfs://box@account/run?SECRET=x&Access_Key_ID=y", "abfs://box@account/run?SECRET=***&Access_Key_ID=***"),
        ("postgresql://me:hunter two@host/studies", "postgresql://me:***@host/studies"),
        ("postgresql://me:hun@ter two@host/studies", "postgresql://me:***@host/studies"),
        ("postgresql://my name:hunter two@host/studies", "postgresql://my name:***@host/studies"),
        ("postgresql://host/studies?password=hunter two&x=1", "postgresql://host/studies?password=***&x=1"),
        ("abfs://box@account/run?sas=x%2B&y=1", "abfs://box@account/run?sas=***&y=1"),
        ("https://account/run?sv=1&sig=x%2B", "https://account/run?sv=1&sig=***"),
        ("https://host/run?X-Amz-Signature=x&y=1", "https://host/run?X-Amz-Signature=***&y=1"),
        ("host=db password='hunter two' user=me", "host=db password=*** user=me"),
        ("cannot open postgresql://me:hunter two@host: gone", "cannot open postgresql://me:***@host: gone"),
        ("http://host:80 told postgresql://me:p@ss@host off", "http://host:80 told postgresql://me:***@host off"),
        ("host=db password=secret user=me", "host=db password=*** user=me"),
        ("cannot reach postgresql://me:secret@host or its copy", "cannot reach postgresql://me:***@host or its copy"),
    ],
)
def test_no_password_is_shown_and_the_rest_is(url: str, shown: str) -> None:
    assert without_password(url) == shown
    assert without_password(shown) == shown
    assert without_password(f"--storage={url}") == f"--storage={shown}"


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:///studies.db",
        "postgresql://host:5432/studies",
        "postgresql://me@host:5432/studies",
        "s3://bucket/run?endpoint_override=127.0.0.1:9000&scheme=http",
        "--documents.num_tokens=5",
        "num_tokens=5 sigma=0.3",
        "/a/folder@home:with/odd=names",
    ],
)
def test_what_holds_no_password_stays_as_it_is(text: str) -> None:
    assert without_password(text) == text
