"""Sample, walk, transform, score."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Request, Response

from app import forms, inference, scoring, transform
from app.clients import while_connected
from app.forms import Made
from app.negotiation import choose
from app.schemas.common import MAX_LATENT_BYTES, MAX_UPLOAD_BYTES
from app.schemas.inference import GenerateRequest, InterpolateRequest, Scores
from app.service import Service, ServiceOf
from app.uploads import DISCRIMINATE_BODY, TRANSFORM_BODY, DiscriminateBody, TransformBody, read_discriminate, read_transform

router = APIRouter(tags=["inference"])
Accept = Annotated[str | None, Header(include_in_schema=False)]


def _pictures(*media_types: str) -> dict[int | str, dict[str, Any]]:
    """How OpenAPI is told of the forms of an answer; the first is what a client gets that does not choose."""
    binary = {"schema": {"type": "string", "format": "binary"}}
    pictures = {"schema": {"$ref": "#/components/schemas/Pictures"}}
    content = {form: pictures if form == forms.JSON else binary for form in media_types}
    return {200: {"content": content, "description": "The images, in the form that Accept chose"}}


async def _answer(
    request: Request, service: Service, form: str, make: Callable[[], Awaitable[Made]], encode: Callable[[Made], bytes]
) -> Response:
    """The images, made and encoded while the client waits for them."""

    async def made_and_encoded() -> tuple[Made, bytes]:
        made = await make()
        return made, await service.in_pool(lambda: encode(made), "encode", len(made.images))

    made, content = await while_connected(request, made_and_encoded())
    return Response(content, media_type=form, headers=made.headers)


@router.post(
    "/generate", response_class=Response, responses=_pictures(*forms.STILLS), max_body_size=MAX_LATENT_BYTES, summary="Sample images"
)
async def generate(body: GenerateRequest, request: Request, service: ServiceOf, accept: Accept = None) -> Response:
    """A grid as PNG, JPEG or WebP; single images as a ZIP of PNGs, as a NumPy array (N, H, W, C) of uint8, or as JSON (base64 and seeds).

    `X-Model`, `X-Version` and `X-Seed` (of the first image) tell what made it; a PNG carries them as text too. With `best_of`, an
    image's own seed is that of the candidate that was kept: asked for alone, it gives the same image.
    """
    form = choose(accept, forms.STILLS)
    forms.refuse_without_effect(form, {"columns": body.columns, "return_latents": body.return_latents or None})
    return await _answer(
        request, service, form, lambda: inference.generate(service, body), lambda made: forms.still(form, made, body.columns)
    )


@router.post(
    "/interpolate",
    response_class=Response,
    responses=_pictures(*forms.STILLS, forms.GIF),
    max_body_size=MAX_LATENT_BYTES,
    summary="Walk between latents",
)
async def interpolate(body: InterpolateRequest, request: Request, service: ServiceOf, accept: Accept = None) -> Response:
    """A strip, a grid (`columns`) or an animation (GIF, WebP). The frames at the anchors equal the anchors' own images exactly."""
    layout = forms.choose_layout(body, accept)
    return await _answer(
        request, service, layout.form, lambda: inference.interpolate(service, body), lambda made: forms.laid_out(layout, made)
    )


@router.post(
    "/transform",
    response_class=Response,
    responses=_pictures(*forms.PICTURES),
    openapi_extra=TRANSFORM_BODY,
    max_body_size=MAX_UPLOAD_BYTES,
    summary="Make a picture of a picture",
)
async def transform_picture(
    body: Annotated[TransformBody, Depends(read_transform)], request: Request, service: ServiceOf, accept: Accept = None
) -> Response:
    """One picture, by a model whose card says `transforms`; as large as the one that was sent, or `scale` times as large a side.

    Colour mode and orientation as for /discriminate, but the size must be one that the model's input takes (`shape`, `size_multiple`):
    nothing is cropped or resized. A large picture is worked on in tiles where the model allows it, with the same result.
    """
    form = choose(accept, forms.PICTURES)
    return await _answer(request, service, form, lambda: transform.transform(service, body), lambda made: forms.still(form, made, None))


@router.post("/discriminate", openapi_extra=DISCRIMINATE_BODY, max_body_size=MAX_UPLOAD_BYTES, summary="Score pictures")
async def discriminate(body: Annotated[DiscriminateBody, Depends(read_discriminate)], request: Request, service: ServiceOf) -> Scores:
    """Each file's score, the probability of being real where the score is a logit, and where the score lies among held-out real images
    and among generated ones.

    Files of any colour mode, size and orientation: turned upright by EXIF, brought to 8 bits, laid over white where transparent, made
    grey or RGB as the model is, cropped at the centre to its proportions, resized with an antialiasing filter. A discriminator that
    judges more than pictures (`conditions` of its model's card) wants `labels`, or `sources`.
    """
    return await while_connected(request, scoring.discriminate(service, body))
