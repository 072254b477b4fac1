"""FastAPI as users write it by hand: the model runs where the request is handled, on the event loop or in FastAPI's threads."""

import uvicorn
from fastapi import FastAPI, Response
from pydantic import BaseModel
from work import Ask, Generator, Setup, render

setup = Setup.given()
generator = Generator.load(setup.folder)
app = FastAPI()


class Body(BaseModel):
    model: str
    num_images: int
    seed: int


@app.post("/generate")
async def generate(body: Body) -> Response:
    return in_threads(body)


@app.post("/threads")
def in_threads(body: Body) -> Response:
    [png] = render(generator, [Ask(body.seed, body.num_images)])
    return Response(png, media_type="image/png")


uvicorn.run(app, host="127.0.0.1", port=setup.port, access_log=False, log_level="warning")
