"""Flows go where Prefect goes: a server is asked as Prefect's client asks, with every setting of it."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from kexue_train.foundation.errors import ResourceError
from tests.flows.doors import Door, Headers, open_door, own_settings, reach, write_certificate

pytest.importorskip("prefect")


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[pytest.MonkeyPatch]:
    with own_settings(tmp_path) as changed:
        yield changed


@pytest.fixture
def door() -> Iterator[Door]:
    with open_door() as opened:
        yield opened


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for localhost that no one but its owner knows, with its key."""
    return write_certificate(tmp_path_factory.mktemp("authority") / "certificate.pem")


@pytest.fixture
def tls_door(authority: Path) -> Iterator[Door]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority)
    with open_door(context) as opened:
        opened.address = opened.address.replace("127.0.0.1", "localhost")
        yield opened


@pytest.mark.parametrize("end", ["", "/"])
def test_an_address_in_the_environment_is_reached(door: Door, end: str, environment: pytest.MonkeyPatch) -> None:
    reach(environment, API_URL=f"http://{door.address}{end}")
    assert len(door.seen) == 1


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("home/profiles.toml", 'active = "mine"\n[profiles.mine]\nPREFECT_API_URL = "ADDRESS"\n'),
        ("prefect.toml", '[api]\nurl = "ADDRESS"\n'),
        ("pyproject.toml", '[tool.prefect.api]\nurl = "ADDRESS"\n'),
        (".env", "PREFECT_API_URL=ADDRESS\n"),
    ],
)
def test_an_address_in_a_file_of_prefect_is_reached(
    door: Door, file: str, text: str, tmp_path: Path, environment: pytest.MonkeyPatch
) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(text.replace("ADDRESS", f"http://{door.address}"))
    reach(environment)
    assert len(door.seen) == 1


@pytest.mark.parametrize(
    ("settings", "headers"),
    [
        ({"API_AUTH_STRING": "admin:secret"}, {"authorization": "Basic YWRtaW46c2VjcmV0"}),
        ({"API_KEY": "secret"}, {"authorization": "Bearer secret"}),
        ({"CLIENT_CUSTOM_HEADERS": json.dumps({"CF-Access-Client-Id": "secret"})}, {"cf-access-client-id": "secret"}),
    ],
)
def test_whoever_is_asked_for_a_secret_gives_it(
    door: Door, settings: dict[str, str], headers: Headers, environment: pytest.MonkeyPatch
) -> None:
    door.wanted = headers
    with pytest.raises(ResourceError, match=r"HTTP 403 Forbidden.*give what it asks for: PREFECT_API_AUTH_STRING"):
        reach(environment, API_URL=f"http://{door.address}")
    reach(environment, **settings)


def test_a_server_behind_tls_is_reached_as_its_settings_say(
    tls_door: Door, authority: Path, environment: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ResourceError, match=r"self-signed certificate.*PREFECT_API_SSL_CERT_FILE"):
        reach(environment, API_URL=f"https://{tls_door.address}")
    with pytest.raises(ResourceError, match=r"the file PREFECT_API_SSL_CERT_FILE: .*No such file"):
        reach(environment, API_SSL_CERT_FILE="/nowhere.pem")
    reach(environment, API_SSL_CERT_FILE=str(authority))
    environment.delenv("PREFECT_API_SSL_CERT_FILE")
    reach(environment, API_TLS_INSECURE_SKIP_VERIFY="true")


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("http://127.0.0.1:9/api", "refused"),
        ("http://DOOR/ui", "HTTP 404"),
        ("DOOR", "'http://' or 'https://'"),
    ],
)
def test_what_is_no_server_is_named_at_once(
    door: Door, address: str, reason: str, environment: pytest.MonkeyPatch
) -> None:
    address = address.replace("DOOR", door.address)
    with pytest.raises(ResourceError, match=r"with /api at the end") as caught:
        reach(environment, API_URL=address)
    assert f"the Prefect server at {address} does not answer" in str(caught.value)
    assert reason in str(caught.value)


def test_a_busy_server_is_not_waited_for(door: Door, environment: pytest.MonkeyPatch) -> None:
    door.wanted, door.refusal = {"never": "there"}, 503
    with pytest.raises(ResourceError, match="HTTP 503 Service Unavailable"):
        reach(environment, API_URL=f"http://{door.address}")
    assert len(door.seen) == 1


def test_credentials_in_an_address_are_not_shown(environment: pytest.MonkeyPatch) -> None:
    with pytest.raises(ResourceError, match=r"127\.0\.0\.1:9/api does") as caught:
        reach(environment, API_URL="http://me:hidden@127.0.0.1:9/api")
    assert "hidden" not in str(caught.value)


def test_without_an_address_the_state_lies_here_and_the_profile_still_counts(
    tmp_path: Path, environment: pytest.MonkeyPatch
) -> None:
    from flows import server

    profiles = tmp_path / "profiles.toml"
    profiles.write_text('active = "mine"\n[profiles.mine]\nPREFECT_API_REQUEST_TIMEOUT = "7"\n')
    environment.delenv("PREFECT_HOME")
    environment.setattr(server, "start_embedded_server", lambda: None)
    reach(environment, PROFILES_PATH=str(profiles))
    settings = server.get_current_settings()
    assert settings.home == tmp_path / ".prefect"
    assert settings.api.request_timeout == 7
    assert settings.server.ephemeral.enabled


def test_an_embedded_server_that_is_forbidden_is_not_started(environment: pytest.MonkeyPatch) -> None:
    with pytest.raises(ResourceError, match=r"no Prefect server is named .* and an embedded one is forbidden"):
        reach(environment, SERVER_ALLOW_EPHEMERAL_MODE="false")


def test_an_embedded_server_that_ends_at_once_is_named(environment: pytest.MonkeyPatch) -> None:
    environment.setattr("sys.executable", "/bin/false")
    with pytest.raises(
        ResourceError, match=r"embedded server did not start .* PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT"
    ):
        reach(environment, API_URL="", API_AUTH_STRING="")
