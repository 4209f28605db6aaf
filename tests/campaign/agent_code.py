"""The agent under test: it writes a line for every call, so that the checker knows what ran, where and how often.

Each version is this text with another name and another temper. The text is plain: a version is what a user would deploy.
"""

from __future__ import annotations

from pathlib import Path

TEMPERS = ("well", "import", "unwell", "fails", "slow", "dies")
SLOW_S = 0.5  # what every call of a slow version adds: the latency ratio of the canary analysis trips
DEATHS = 4  # processes of a version that die; those after them live, as the version may be promoted before it dies

_TEXT = """
import asyncio, json, os, threading, time
from collections import Counter

from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute

from swiftclaw import Agent

CODE, TEMPER, FOLDER, SLOW_S, DEATHS = {code!r}, {temper!r}, {folder!r}, {slow_s!r}, {deaths!r}
if TEMPER == "import":
    raise RuntimeError("this version cannot be imported")

agent = Agent("chaos")
turns, calls, logs = Counter(), Counter(), []


def executed(kind, request_id, conversation="-", turn=0):
    if not logs:
        logs.append(os.open(f"{{FOLDER}}/executions/{{os.getpid()}}", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644))
    line = f"{{request_id}} {{os.getpid()}} {{CODE}} {{kind}} {{conversation}} {{turn}} {{time.monotonic():.3f}}\\n"
    os.write(logs[0], line.encode())
    calls["all"] += 1
    if TEMPER == "fails" and calls["all"] % 2:
        raise ValueError("this version fails")


def may_die():
    for number in range(DEATHS):
        try:
            os.close(os.open(f"{{FOLDER}}/flags/dies-{{CODE}}-{{number}}", os.O_CREAT | os.O_EXCL))
            return True
        except FileExistsError:
            pass
    return False


@agent.on_start
def start():
    if TEMPER == "dies" and may_die():
        timer = threading.Timer(8 + os.getpid() % 8, os._exit, (1,))
        timer.daemon = True
        timer.start()


@agent.on_message
async def handle(message):
    try:
        content = message if isinstance(message, dict) else json.loads(message)
    except ValueError:  # a probe of `swiftclaw test failover`
        content = {{"kind": "probe", "id": "probe"}}
    conversation = content.get("conversation", "-")
    if conversation != "-":
        turns[conversation] += 1
    turn = turns[conversation]
    executed(content["kind"], content["id"], conversation, turn)
    reply = f"{{content['id']}}|{{os.getpid()}}|{{CODE}}|{{turn}}"
    if content.get("pieces"):
        return pieces(content, reply)
    await asyncio.sleep(content.get("work", 0) + (SLOW_S if TEMPER == "slow" else 0))
    return reply


async def pieces(content, reply):
    for number in range(content["pieces"]):
        yield f"{{number}}:{{reply}};" + "." * content.get("padding", 0)
        await asyncio.sleep(content["gap"])


@agent.health_check
async def health():
    ill = TEMPER == "unwell" or os.path.exists(f"{{FOLDER}}/flags/sick-{{os.getpid()}}")
    return {{"status": "unhealthy", "reason": "flagged"}} if ill else {{"status": "healthy"}}


async def item(request):
    request_id = request.path_params["id"]
    body = (await request.body()).decode()
    executed(f"app-{{request.method.lower()}}", request_id)
    await asyncio.sleep(float(request.query_params.get("work", 0)))
    answer = {{"id": request_id, "pid": os.getpid(), "code": CODE, "method": request.method, "body": body}}
    return JSONResponse(answer)


async def talk(socket):
    await socket.accept()
    request_id = socket.path_params["id"]
    executed("ws", request_id)
    async for text in socket.iter_text():
        await socket.send_text(f"{{request_id}}|{{os.getpid()}}|{{CODE}}|{{text}}")


routes = [Route("/items/{{id}}", item, methods=["GET", "PUT", "POST"]), WebSocketRoute("/talk/{{id}}", talk)]
agent.mount(Starlette(routes=routes))
"""


def agent_code(code: str, temper: str, folder: Path) -> str:
    """The source of version `code`. `folder` holds executions/ and flags/."""
    if temper not in TEMPERS:
        raise ValueError(f"temper: {temper!r} is not one of {', '.join(TEMPERS)}")
    return _TEXT.format(code=code, temper=temper, folder=str(folder), slow_s=SLOW_S, deaths=DEATHS)
