"""Worker: answers, and every way in which none comes."""

from __future__ import annotations

import sys
import time

import psutil
import pytest

from gpt2x.benchmark.process import FreshWorker, Worker, WorkerError

ANSWERING = """
import json, sys, time
for line in sys.stdin:
    question = json.loads(line)
    exec(question.get("do", ""))
    print(json.dumps({"you said": question}), flush=True)
"""


@pytest.fixture
def start():
    workers = []

    def start(code: str = ANSWERING, timeout: float = 30) -> Worker:
        workers.append(Worker([sys.executable, "-c", code], timeout=timeout))
        return workers[-1]

    yield start
    for worker in workers:
        worker.close()
        assert worker._process.returncode is not None


def test_each_question_gets_its_answer(start):
    worker = start()
    for question in ({"text": "é\n雪"}, {"number": 1.5}):
        assert worker.ask(question) == {"you said": question}


def test_a_worker_that_ends_tells_its_last_words(start):
    worker = start()
    with pytest.raises(WorkerError, match=r"(?s)^ended with exit code 1\n.*ValueError: too bad$") as caught:
        worker.ask({"do": "print(*range(100), sep='\\n', file=sys.stderr); raise ValueError('too bad')"})
    assert "\n0\n" not in str(caught.value)
    with pytest.raises(WorkerError, match="exit code 1"):  # and again, where it no longer listens
        worker.ask({})


def test_a_worker_that_ends_without_an_answer(start):
    with pytest.raises(WorkerError, match="ended with exit code 0"):
        start("import sys; sys.stdin.readline()").ask({})
    with pytest.raises(WorkerError, match="ended with exit code 0"):  # half an answer is none
        start("import sys; sys.stdin.readline(); print('{', end='')").ask({})


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_worker_that_is_killed(start):
    with pytest.raises(WorkerError, match="ended by SIGKILL, perhaps because memory ran out"):
        start().ask({"do": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"})


def test_a_worker_that_hangs_is_ended(start):
    worker = start(timeout=1)
    with pytest.raises(WorkerError, match="no answer within 1 s"):
        worker.ask({"do": "time.sleep(60)"})
    assert worker._process.returncode is not None


def test_much_on_standard_error_stops_nothing(start):
    question = {"do": "sys.stderr.write('x' * 1_000_000)"}
    assert start().ask(question) == {"you said": question}


def test_closing_ends_a_busy_worker(start):
    worker = start("import time; time.sleep(60)")
    process = psutil.Process(worker._process.pid)
    before = time.monotonic()
    worker.close()
    assert not process.is_running()
    assert time.monotonic() - before < 30


def test_closing_ends_what_the_process_has_started(start):
    code = "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE)\n"
    worker = start(code + "sys.stdin.readline(); print(p.pid, flush=True); p.wait()")
    grandchild = psutil.Process(worker.ask({}))
    worker.close()
    grandchild.wait(30)


FRESH = """
import json, os, sys, time
job = json.loads(sys.stdin.readline())
print(json.dumps({"pid": os.getpid(), "job": job, "alive": time.perf_counter() - job["started"]}), flush=True)
exec(job.get("do", ""))
"""


def test_a_fresh_worker_is_a_new_process_each_time():
    worker = FreshWorker([sys.executable, "-c", FRESH], timeout=60)
    assert worker.ask({"name": "x", "do": "time.sleep(0.3)"}) == {}
    before = time.perf_counter()
    answers = [worker.ask({"turn": turn}) for turn in range(2)]
    after = time.perf_counter()
    assert len({answer["pid"] for answer in answers}) == 2
    assert not any(psutil.pid_exists(answer["pid"]) for answer in answers)
    for turn, answer in enumerate(answers):
        assert answer["job"].pop("started") >= before
        assert answer["job"] == {"name": "x", "do": "time.sleep(0.3)", "turn": turn}
        assert 0 < answer["alive"] < answer["seconds"] - 0.3  # what the process does after its answer counts
    assert sum(answer["seconds"] for answer in answers) < after - before


@pytest.mark.parametrize(
    ("do", "timeout", "message"),
    [("sys.exit('too bad')", 60, "(?s)^ended with exit code 1\n.*too bad$"), ("time.sleep(60)", 5, "^no end within 5 s")],
)
def test_a_fresh_worker_that_does_not_end_well(do, timeout, message):
    worker = FreshWorker([sys.executable, "-c", FRESH], timeout=timeout)
    worker.ask({"do": do})
    with pytest.raises(WorkerError, match=message):
        worker.ask({})
    worker.close()
