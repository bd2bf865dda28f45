"""Tests of one file that mostly wait, run at once: `@at_once` on each; and in the file `from at_once import at_once, started`.

The bodies of all that were selected start together, in threads, when the first test is run; each test then waits for its own and reports it. A body
may take parameters, fixtures of the module or the session, and `folder`, a temporary one of its own. AT_ONCE in the file: how many at a time (4)."""
import inspect
from concurrent.futures import ThreadPoolExecutor

import pytest


def at_once(body):
    def test(request, started, **_):
        started[request.node.nodeid].result()

    test.__name__, test.__qualname__, test.__module__, test.__doc__, test.body = body.__name__, body.__qualname__, body.__module__, body.__doc__, body
    names = ["request", "started", *(name for name in inspect.signature(body).parameters if name != "folder")]
    test.__signature__ = inspect.Signature([inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in names])
    test.pytestmark = getattr(body, "pytestmark", [])
    return test


@pytest.fixture(scope="module")
def started(request, tmp_path_factory):
    """What the bodies end with, by the test's id."""
    bodies = {}
    for item in request.session.items:
        if item.module is request.module and hasattr(item.function, "body"):
            values = dict(item.callspec.params) if hasattr(item, "callspec") else {}
            for name in inspect.signature(item.function.body).parameters:
                if name not in values:
                    values[name] = tmp_path_factory.mktemp("at-once") if name == "folder" else request.getfixturevalue(name)
            bodies[item.nodeid] = (item.function.body, values)
    with ThreadPoolExecutor(getattr(request.module, "AT_ONCE", 4)) as pool:
        futures = {test: pool.submit(body, **values) for test, (body, values) in bodies.items()}
        yield futures
        for future in futures.values():
            future.cancel()
