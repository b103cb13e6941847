"""Secrets by key, in URLs and by value; and what only looks like one."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.__main__ import PrepJobArguments, TrainJobArguments
from data_prep.contract.redaction import (
    RedactingStream,
    is_secret,
    is_secret_key,
    redact,
    redact_text,
    redact_urls,
    secret_values,
)
from data_prep.contract.shell.options import dotted_keys

SECRET_KEYS = [
    "password", "MLFLOW_TRACKING_PASSWORD", "hf_token", "HF_TOKEN", "token", "apiKey", "api_key", "accessToken",
    "AWS_SECRET_ACCESS_KEY", "SLURM_JWT", "db_pwd", "private-key", "client.secret", "GITHUB_TOKEN", "credentials",
    "PGPASSWORD", "DB_PASS", "AZURE_STORAGE_SAS", "AZURE_STORAGE_CONNECTION_STRING", "SLACK_WEBHOOK", "GITHUB_PAT",
    "SLACK_WEBHOOK_URL", "AZURE_STORAGE_KEY", "SENTRY_DSN", "OPENAI_APIKEY", "NPM_AUTHTOKEN", "SECRET_KEY_BASE",
]  # fmt: skip
HARMLESS_KEYS = [
    "cls_token", "special_ids.cls", "pad_token_id", "token_type_ids", "tokens_per_second", "tokenizer", "max_token",
    "PWD", "OLDPWD", "key_mask", "monkey", "train/tokens", "TOKENIZERS_PARALLELISM", "num_attention_heads",
    "PGPASSFILE", "HF_TOKEN_PATH", "AWS_SHARED_CREDENTIALS_FILE", "BYPASS", "PAT", "pass", "PATH", "first_pass_rate",
]  # fmt: skip


@pytest.mark.parametrize("key", SECRET_KEYS)
def test_secret_keys(key: str) -> None:
    assert is_secret_key(key)
    assert redact({"a": [{key: "hunter22"}]}) == {"a": [{key: "***"}]}


@pytest.mark.parametrize("key", HARMLESS_KEYS)
def test_harmless_keys(key: str) -> None:
    assert not is_secret_key(key)
    assert redact({key: "[CLS]", "n": 3, "none": None, "yes": True}) == {
        key: "[CLS]", "n": 3, "none": None, "yes": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("value", "secret"),
    [
        ("/x/key.json", False), ("~/.config/gcloud/key.json", False), ("/var/run/secrets/cloud", False),
        ("./key.json", False), ("/hunter2+=", True), ("hunter2", True), ('{"private_key": "x"}', True),
    ],
)  # fmt: skip
def test_the_path_of_a_credentials_file_is_no_secret(value: str, secret: bool) -> None:
    assert is_secret("GOOGLE_APPLICATION_CREDENTIALS", value) is secret
    assert is_secret("PGPASSWORD", value)
    text = f"GOOGLE_APPLICATION_CREDENTIALS={value}"
    assert (redact_text(text, {}) != text) is secret


@pytest.mark.parametrize("arguments", [TrainJobArguments, PrepJobArguments])
def test_no_key_of_a_configuration_is_a_secret(arguments: type[object]) -> None:
    assert [key for key, _ in dotted_keys(arguments) if is_secret_key(key)] == []


def test_a_line_for_the_user_keeps_its_meaning() -> None:
    line = "special token: '[MASK]' of https://me:hunter2@h/a?sig=abc&n=1"
    assert redact_urls(line) == "special token: '[MASK]' of https://***@h/a?sig=***&n=1"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://bob:hunter2@host:5000/x", "https://***@host:5000/x"),
        ("see https://ghp_abc@github.com/a/b.git now", "see https://***@github.com/a/b.git now"),
        ("postgresql+psycopg2://u:a/b@c@host/db", "postgresql+psycopg2://***@host/db"),
        ("https://h/x?token=abc&page=2", "https://h/x?token=***&page=2"),
        ("https://h/x?page=2&X-Amz-Signature=abc&sig=d", "https://h/x?page=2&X-Amz-Signature=***&sig=***"),
        ("Authorization: Bearer abcdefgh123", "Authorization: Bearer ***"),
        ("failed: password=hunter2, user=bob", "failed: password=***, user=bob"),
        ("{'api_key': 'hunter2', 'n': 1}", "{'api_key': ***, 'n': 1}"),
        ("http://127.0.0.1:5000/#/experiments/1", "http://127.0.0.1:5000/#/experiments/1"),
        ("mail bob@example.org, [CLS] token at 3", "mail bob@example.org, [CLS] token at 3"),
        ("/home/me/shards/v2", "/home/me/shards/v2"),
    ],
)
def test_text(text: str, expected: str) -> None:
    assert redact_text(text, {}) == expected


@given(st.text(st.characters(codec="ascii", exclude_categories=["C", "Z"], exclude_characters="\"'<>"), min_size=5))
def test_a_password_in_a_url_never_stays(password: str) -> None:
    url = f"postgresql://narrow:{password}@host/db"
    assert redact_text(url, {}).endswith("***@host/db")
    assert password in secret_values({"MLFLOW_TRACKING_URI": url})


def test_the_environments_secrets_go_wherever_they_stand() -> None:
    environment = {"HF_TOKEN": "hunter-2-hunter", "A": "mysql://u:p%40ssword@h/d", "PWD": "/home/me", "TOKEN": "no"}
    assert secret_values(environment) == {"hunter-2-hunter", "p%40ssword", "p@ssword"}
    assert (
        redact_text("login p@ssword (hunter-2-hunter) in /home/me: no", environment)
        == "login *** (***) in /home/me: no"
    )


def test_a_stream_redacts_a_secret_that_comes_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_PASSWORD", "hunter-2-hunter")
    inner = io.StringIO()
    stream = RedactingStream(inner)
    print("refused hunter-2-", end="", file=stream)
    print("hunter\nnext", file=stream)
    assert inner.getvalue() == "refused ***\nnext\n"


def test_the_sentence_around_a_url_stays() -> None:
    assert (
        redact_urls("cannot read https://h/a?n=1&sig=a:b: it is gone")
        == "cannot read https://h/a?n=1&sig=***: it is gone"
    )
    assert redact_urls("https://h/a?sig=abc, https://h/b?sig=abc.") == "https://h/a?sig=***, https://h/b?sig=***."
