"""Credentials of addresses and of the environment are masked where they are shown, and left out of what names data."""

import pytest

from kexue_train.foundation.credentials import is_masked, redact, redact_values, without_credentials
from kexue_train.foundation.errors import CorpusError

PLANTED = "pLaNtEd9secret"


@pytest.mark.parametrize(
    ("address", "named"),
    [
        (f"https://user:{PLANTED}@host/a.jsonl", "https://host/a.jsonl"),
        (f"https://{PLANTED}@host/a.jsonl", "https://host/a.jsonl"),
        (f"https://host/a?X-Amz-Date=1&X-Amz-Signature={PLANTED}&versionId=3", "https://host/a?versionId=3"),
        (f"https://host/a?versionId=3&x-goog-signature={PLANTED}", "https://host/a?versionId=3"),
        (
            f"https://acc.blob.core.windows.net/c/a?sv=2&sr=b&se=9&sig={PLANTED}%3D",
            "https://acc.blob.core.windows.net/c/a",
        ),
        (f"https://host/a?Expires=9&Key-Pair-Id=K1&Signature={PLANTED}", "https://host/a"),
        (f"https://host/a?OSSAccessKeyId=K1&Expires=9&Signature={PLANTED}", "https://host/a"),
        (f"https://host/a?part=2&token={PLANTED}#rows", "https://host/a?part=2#rows"),
        (f"https://host/a?private_token={PLANTED};part=2", "https://host/a?part=2"),
        (f"https://host/a?key={PLANTED}", "https://host/a"),
        (f"https://host/a#access_token={PLANTED}", "https://host/a"),
        (f"http://[::1]:80/a?token={PLANTED}", "http://[::1]:80/a"),
        (f"s3://AKIA:{PLANTED}@bucket/dir@v2/a?region=eu", "s3://bucket/dir@v2/a?region=eu"),
        (f"s3://AKIA:{PLANTED}/+x@bucket/a", "s3://bucket/a"),
        (f"sftp://bob:{PLANTED}@host/a", "sftp://bob@host/a"),
        (f"zip://a.txt::s3://AKIA:{PLANTED}@bucket/x.zip", "zip://a.txt::s3://bucket/x.zip"),
        (f"simplecache::https://host/a?sig={PLANTED}", "simplecache::https://host/a"),
        (f"postgresql+asyncpg://u:{PLANTED}@db:5432/p", "postgresql+asyncpg://u@db:5432/p"),
        (f"https://p'{PLANTED}:x@host/a", "https://host/a"),
    ],
)
def test_credentials_are_masked_and_name_nothing(address: str, named: str) -> None:
    assert without_credentials(address) == named
    for text in (address, f"in '{address}', at 3", f'{{"uri": "{address}"}}', f"({address})", f"[{address}]"):
        assert PLANTED not in redact(text)
        assert redact(redact(text)) == redact(text)
    assert is_masked(redact(address))
    assert not is_masked(address)
    assert without_credentials(redact(address)) == named, "a masked address names the same"


@pytest.mark.parametrize(
    "address",
    [
        "https://host:8080/a@b/c.jsonl?key=train&sp=1&st=x",
        "https://host/a?expires=never&policy=open",
        "abfss://container@account.dfs.core.windows.net/a",
        "hf://user/name@main:config:train",
        "sftp://bob@host/a",
        "s3://bucket/a*.jsonl?endpoint_override=http%3A%2F%2Fhost",
        "/data/a?token=x.jsonl",
    ],
)
def test_what_names_data_stays(address: str) -> None:
    assert redact(address) == without_credentials(address) == address
    assert not is_masked(address)


def test_words_around_an_address_stay() -> None:
    text = "see ['https://host/a?sig=x1'] (https://host/?token=y2), or https://host/z?sig=w: it failed"
    assert (
        redact(text) == "see ['https://host/a?sig=***'] (https://host/?token=***), or https://host/z?sig=***: it failed"
    )


def test_separators_in_html_and_json_separate() -> None:
    assert redact("https://h/a?sig=x&amp;part=2&amp;token=y") == "https://h/a?sig=***&amp;part=2&amp;token=***"
    assert redact(r"https://h/a?part=1\u0026token=y") == r"https://h/a?part=1\u0026token=***"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HF_TOKEN", "hf_abcdefgh"),
        ("AWS_SECRET_ACCESS_KEY", "ab/cdefgh"),
        ("WANDB_API_KEY", PLANTED),
        ("PGPASSWORD", "correcthorse"),
        ("PREFECT_API_AUTH_STRING", f"admin:{PLANTED}"),
    ],
)
def test_secrets_of_the_environment_are_masked(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    assert redact(f"illegal header 'Bearer {value}'") == "illegal header 'Bearer ***'"


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "PIP_INDEX_URL", "HF_ENDPOINT", "MLFLOW_TRACKING_URI"])
def test_passwords_of_mirrors_are_masked_alone_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, f"https://user:{PLANTED}@mirror/simple")
    assert redact(f"login of user with {PLANTED} failed") == "login of user with *** failed"


@pytest.mark.parametrize(
    ("name", "value"), [("SORT_KEY", "timestamp"), ("RAY_AUTH_TOKEN_PATH", "/home/u/token"), ("MODE", "12345678x")]
)
def test_other_variables_are_no_secrets(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    assert redact(f"by {value}") == f"by {value}"


def test_every_error_of_ours_is_made_without_credentials() -> None:
    assert str(CorpusError(f"https://u:{PLANTED}@host/a: not UTF-8")) == "https://***@host/a: not UTF-8"


def test_values_are_redacted_at_any_depth() -> None:
    address = f"https://u:{PLANTED}@h/a"
    assert redact_values({"a": [address, 1], address: ({"b": address},)}) == {
        "a": ["https://***@h/a", 1],
        "https://***@h/a": [{"b": "https://***@h/a"}],
    }
