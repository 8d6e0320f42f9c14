"""What gRPC writes on standard error: refusals come into our log, in our words and not too often; all else is passed on."""

import os
import signal
import subprocess
import sys

import pytest
from structlog.testing import capture_logs

from conlora.net.handshakes import QUIET_SECONDS, REASONS, Refusals, _watch, reason

LINE = (
    "I1125 15:45:40.544414   13281 ssl_transport_security.cc:2563] Handshake failed with error SSL_ERROR_SSL: error:1000007d:"
    "SSL routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED: {}"
)


@pytest.mark.parametrize("told", REASONS)
def test_reasons_in_our_words(told: str) -> None:
    assert reason(LINE.format(told)) == REASONS[told]


def test_other_lines_are_no_refusals() -> None:
    assert reason("I1125 15:45:40.544414 1 log.cc:102] Log level INFO is not suitable for production.") is None
    assert reason("Segmentation fault") is None
    told = reason(LINE.format("a reason that is new"))
    assert told is not None
    assert told.endswith("a reason that is new")


def test_a_caller_that_comes_again_and_again_does_not_fill_the_log() -> None:
    refusals = Refusals()
    with capture_logs() as logs:
        for _ in range(1000):
            refusals.add("it does not speak TLS", 0.0)
        refusals.add("it shows no certificate", 1.0)
        refusals.add("it does not speak TLS", QUIET_SECONDS)
    assert [(entry["reason"], entry["times"]) for entry in logs] == [
        ("it does not speak TLS", 1),
        ("it shows no certificate", 1),
        ("it does not speak TLS", 1000),
    ]
    with capture_logs() as logs:
        Refusals("refused").add("tls", 0.0, reason="tls: none", address="here")
    assert logs == [{"event": "refused", "log_level": "warning", "reason": "tls: none", "address": "here", "times": 1}]
    with capture_logs() as logs:
        for number in range(10_000):
            refusals.add(f"reason {number}", QUIET_SECONDS)
    assert len(logs) < 50


PROGRAM = """
import os, sys
from conlora.net.handshakes import refusals_in_log
try:
    with refusals_in_log():
        from conlora.cli.logs import set_up_logging
        set_up_logging()
        import structlog
        structlog.get_logger().info("up")
        os.write(2, b"I1125 15:45:40.544414 1 log.cc:102] Log level INFO is not suitable for production.\\n")
        os.write(2, LINE.encode() + b"\\n")
        os.write(2, b"\\x1b[31mwhat a caller said\\n")
        os.write(2, b"from C\\nunfinished")
        print("from Python", file=sys.stderr)
        raise ValueError("boom")
finally:
    print("after", file=sys.stderr)
    os.write(2, b"at the end\\n")
"""


def test_standard_error_is_passed_on_but_for_grpcs_lines() -> None:
    program = f"LINE = {LINE.format('certificate has expired')!r}\n{PROGRAM}"
    env = {name: value for name, value in os.environ.items() if name != "GRPC_VERBOSITY"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, env=env)
    for part in ("up", "from C\n", "unfinished", "from Python\n", "ValueError: boom", "after\n", "at the end\n"):
        assert part in done.stderr
    assert "TLS has refused a connection" in done.stderr
    assert "the certificate of a configured peer or operator has expired; `conlora cert` tells of peers" in done.stderr
    assert "?[31mwhat a caller said\n" in done.stderr, "no escape sequences in our log"
    assert "suitable for production" not in done.stderr
    assert "ssl_transport_security" not in done.stderr
    assert done.returncode == 1


def test_a_full_disk_does_not_end_the_reasons() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"from C\n" + LINE.format("HTTP_REQUEST").encode() + b"\nunfinished")
    os.close(writing)
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        with capture_logs() as logs:
            _watch(reading, full, 0)
    finally:
        os.close(full)
    assert [entry["reason"] for entry in logs] == [REASONS["HTTP_REQUEST"]]


def test_where_c_code_has_ended_the_process_is_told() -> None:
    program = """
import os
from conlora.net.handshakes import refusals_in_log
with refusals_in_log():
    os.abort()
"""
    env = {name: value for name, value in os.environ.items() if name != "GRPC_VERBOSITY"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == -signal.SIGABRT
    assert "Fatal Python error: Aborted" in done.stderr
    assert 'File "<string>", line 5 in <module>' in done.stderr


def test_who_has_asked_for_grpcs_own_lines_gets_them() -> None:
    program = f"LINE = {LINE.format('certificate has expired')!r}\n{PROGRAM}"
    env = {**os.environ, "GRPC_VERBOSITY": "INFO"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, env=env)
    assert "ssl_transport_security" in done.stderr
    assert "TLS has refused a connection" not in done.stderr
