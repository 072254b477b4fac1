"""Request fields become tensors, or a sentence that says what is allowed."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from app import latents
from app.errors import Invalid
from app.signature import FIELDS_OF_KIND, Fields, check_taken, encode, encode_labels, encode_latent, every_class, fields_of
from training.contract import MAX_SEED, TensorSpec

LATENT = TensorSpec(name="latent", kind="latent", shape=(8,), distribution="normal")
STACKED = TensorSpec(name="noise", kind="latent", shape=(2, 3), distribution="uniform")
LABEL = TensorSpec(name="label", kind="label", shape=(3,), classes=("shirt", "shoe", "bag"))
UNNAMED = TensorSpec(name="label", kind="label", shape=(3,))
IMAGE = TensorSpec(name="image", kind="image", shape=(1, 8, 8))


def refusal(*inputs: TensorSpec, num_images: int = 2, **fields: object) -> tuple[str, list[str]]:
    """The sentence and the pointers of a refused request."""
    with pytest.raises(Invalid) as caught:
        encode(inputs, Fields(**fields), num_images)  # type: ignore[arg-type]
    return caught.value.detail, [error.pointer for error in caught.value.errors]


# --- which fields ---------------------------------------------------------------------------------------------------------------


def test_fields_follow_from_the_kinds_of_the_inputs() -> None:
    assert fields_of((LATENT,)) == ("seed", "latents", "truncation")
    assert fields_of((LATENT, LABEL)) == ("seed", "latents", "truncation", "labels")
    assert fields_of((LATENT, STACKED)) == ("seed", "latents", "truncation")
    assert fields_of((LABEL,)) == ("labels",)
    assert fields_of((IMAGE,)) == ()


def test_every_field_belongs_to_a_kind() -> None:
    assert {field for taken in FIELDS_OF_KIND.values() for field in taken} == set(Fields.__dataclass_fields__)


def test_a_field_that_the_model_does_not_take_is_refused_with_those_it_takes() -> None:
    detail, pointers = refusal(LATENT, labels=["shirt"])
    assert detail == "labels: this model takes seed, latents, truncation; leave it out"
    assert pointers == ["/labels"]
    detail, pointers = refusal(LABEL, seed=0, truncation=1.0, labels=["bag"])
    assert detail == "seed, truncation: this model takes labels; leave them out"
    assert pointers == ["/seed", "/truncation"]
    detail, pointers = refusal(IMAGE, seed=0)
    assert detail == "seed: this model takes no seed, latents, truncation or labels; leave it out"
    check_taken((LATENT,), Fields(seed=0))


# --- seeds ----------------------------------------------------------------------------------------------------------------------


def test_image_i_has_seed_plus_i_and_the_latent_of_its_own_seed() -> None:
    encoded = encode((LATENT,), Fields(seed=40), 5)
    assert encoded.seeds == (40, 41, 42, 43, 44)
    assert list(encoded.inputs) == ["latent"]
    for index, seed in enumerate(encoded.seeds):
        assert torch.equal(encoded.inputs["latent"][index], encode((LATENT,), Fields(seed=seed), 1).inputs["latent"][0])


def test_without_a_seed_one_is_drawn_and_told() -> None:
    first, second = encode((LATENT,), Fields(), 3), encode((LATENT,), Fields(), 3)
    assert first.seeds is not None
    assert first.seeds != second.seeds
    assert torch.equal(encode((LATENT,), Fields(seed=first.seeds[0]), 3).inputs["latent"], first.inputs["latent"])


def test_the_last_seed_is_allowed_and_one_past_it_is_refused() -> None:
    assert encode((LATENT,), Fields(seed=MAX_SEED - 1), 2).seeds == (MAX_SEED - 1, MAX_SEED)
    detail, pointers = refusal(LATENT, seed=MAX_SEED)
    assert detail == f"seed: 2 seeds from {MAX_SEED} on end at {MAX_SEED + 1}; seeds are 0 to {MAX_SEED}"
    assert pointers == ["/seed"]
    assert refusal(LATENT, seed=-1, num_images=1)[1] == ["/seed"]


def test_several_latents_are_drawn_from_one_seed() -> None:
    encoded = encode((LATENT, STACKED), Fields(seed=1), 2)
    assert {name: tuple(values.shape) for name, values in encoded.inputs.items()} == {"latent": (2, 8), "noise": (2, 2, 3)}
    assert torch.equal(encoded.inputs["noise"], latents.draw((LATENT, STACKED), (1, 2))["noise"])


def test_an_image_input_is_left_to_the_caller() -> None:
    assert encode((IMAGE,), Fields(), 2).inputs == {}
    assert encode((IMAGE,), Fields(), 2).seeds is None


# --- latents --------------------------------------------------------------------------------------------------------------------


def test_latents_of_an_answer_asked_again_give_the_same_bits() -> None:
    drawn = encode((LATENT,), Fields(seed=3, truncation=0.7), 4).inputs["latent"]
    given_again = json.loads(json.dumps(drawn.tolist()))
    encoded = encode((LATENT,), Fields(latents=given_again), 4)
    assert torch.equal(encoded.inputs["latent"], drawn)
    assert encoded.seeds is None


def test_latents_have_the_shape_that_the_model_declares() -> None:
    encoded = encode((STACKED,), Fields(latents=[[[1, 2, 3], [4, 5, 6]]]), 1)
    assert encoded.inputs["noise"].tolist() == [[[1, 2, 3], [4, 5, 6]]]
    assert encoded.inputs["noise"].dtype == torch.float32


def test_truncation_scales_drawn_and_given_latents_alike() -> None:
    whole = encode((LATENT,), Fields(seed=0), 2).inputs["latent"]
    assert torch.equal(encode((LATENT,), Fields(seed=0, truncation=0.5), 2).inputs["latent"], whole * 0.5)
    assert torch.equal(encode((LATENT,), Fields(latents=whole.tolist(), truncation=0.5), 2).inputs["latent"], whole * 0.5)
    assert torch.equal(encode((LATENT,), Fields(seed=0, truncation=1.0), 2).inputs["latent"], whole)


ROW = [0.0] * 8


@pytest.mark.parametrize(
    ("values", "sentence", "pointer"),
    [
        ([ROW], "latents: a list of 2 lists of shape (8,) is allowed, and this has 1 items", "/latents"),
        ([ROW] * 3, "latents: a list of 2 lists of shape (8,) is allowed, and this has 3 items", "/latents"),
        ([], "latents: a list of 2 lists of shape (8,) is allowed, and this has 0 items", "/latents"),
        ([ROW, ROW[:7]], "latents.1: a list of 8 numbers is allowed, and this has 7 items", "/latents/1"),
        ([ROW, 0.0], "latents.1: a list of 8 numbers is allowed, and this is none", "/latents/1"),
        ([ROW, "12345678"], "latents.1: a list of 8 numbers is allowed, and this is none", "/latents/1"),
        ([ROW, {}], "latents.1: a list of 8 numbers is allowed, and this is none", "/latents/1"),
        ([ROW, [*ROW[:7], [0.0]]], "latents.1.7: a number from -100 to 100 is allowed", "/latents/1/7"),
        ([ROW, [*ROW[:7], "0"]], "latents.1.7: a number from -100 to 100 is allowed", "/latents/1/7"),
        ([ROW, [*ROW[:7], True]], "latents.1.7: a number from -100 to 100 is allowed", "/latents/1/7"),
        ([ROW, [*ROW[:7], None]], "latents.1.7: a number from -100 to 100 is allowed", "/latents/1/7"),
        ([ROW, [*ROW[:7], float("nan")]], "latents.1.7: a number from -100 to 100 is allowed", "/latents/1/7"),
        ([ROW, [*ROW[:7], float("inf")]], "latents.1.7: a number from -100 to 100 is allowed", "/latents/1/7"),
        ([ROW, [*ROW[:7], 10**400]], "latents.1.7: a number from -100 to 100 is allowed", "/latents/1/7"),
        ([ROW, [*ROW[:7], 100.1]], "latents.1.7: a number from -100 to 100 is allowed", "/latents/1/7"),
    ],
)
def test_latents_of_another_shape_or_value_are_refused_where_they_stand(values: object, sentence: str, pointer: str) -> None:
    assert refusal(LATENT, latents=values) == (sentence, [pointer])


def test_seed_and_latents_together_are_refused() -> None:
    detail, pointers = refusal(LATENT, seed=1, latents=[ROW, ROW])
    assert detail == "latents: latents take the place of a seed; give one of the two"
    assert pointers == ["/latents"]


def test_explicit_latents_of_a_model_with_several_are_refused() -> None:
    assert "this model has 2 latents (latent, noise); give a seed" in refusal(LATENT, STACKED, latents=[ROW, ROW])[0]


def test_one_latent_is_encoded_and_refused_where_it_stands() -> None:
    assert encode_latent(LATENT, [1] * 8, "/anchors/0/latent").tolist() == [1.0] * 8
    with pytest.raises(Invalid) as caught:
        encode_latent(LATENT, ROW[:3], "/anchors/1/latent")
    assert caught.value.errors[0].pointer == "/anchors/1/latent"


# --- labels ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "rows"),
    [
        (["shoe"], [[0, 1, 0]] * 3),
        ([2], [[0, 0, 1]] * 3),
        (["2"], [[0, 0, 1]] * 3),
        (["bag", 0, {"shirt": 1.0, "bag": 3.0}], [[0, 0, 1], [1, 0, 0], [0.25, 0, 0.75]]),
        ([{"shoe": 0.5}], [[0, 1, 0]] * 3),
    ],
)
def test_labels_are_names_indices_or_weights_for_all_or_each(labels: list[str | int | dict[str, float]], rows: list[list[float]]) -> None:
    encoded = encode((LATENT, LABEL), Fields(seed=0, labels=labels), 3)
    assert encoded.inputs["label"].tolist() == rows
    assert encoded.inputs["label"].dtype == torch.float32


@pytest.mark.parametrize(
    ("labels", "sentence", "pointer"),
    [
        (None, 'one label for all images or 2 labels can be given, or "all" for a row of each class; classes: shirt, shoe, bag', "/labels"),
        ([], "one label for all images or 2 labels can be given, and there are 0; classes: shirt, shoe, bag (or 0 to 2)", "/labels"),
        (["bag"] * 3, "one label for all images or 2 labels can be given, and there are 3", "/labels"),
        (["hat"], "no such class; classes: shirt, shoe, bag (or 0 to 2)", "/labels/0"),
        (["bag", "3"], "no such class", "/labels/1"),
        (["bag", "-1"], "no such class", "/labels/1"),
        (["bag", "9" * 5000], "no such class", "/labels/1"),
        ([3], "no such class", "/labels/0"),
        ([-1], "no such class", "/labels/0"),
        ([True], "no such class", "/labels/0"),
        ([{"hat": 1.0}], "no such class", "/labels/0"),
        ([{}], "weights of 0 and more are allowed, with a finite sum above 0", "/labels/0"),
        ([{"bag": 0.0}], "weights of 0 and more", "/labels/0"),
        ([{"bag": -1.0, "shoe": 3.0}], "weights of 0 and more", "/labels/0"),
        ([{"bag": float("nan")}], "weights of 0 and more", "/labels/0"),
        ([{"bag": 1.7e308, "shoe": 1.7e308}], "weights of 0 and more", "/labels/0"),
    ],
)
def test_labels_that_name_no_class_are_refused_with_the_classes(labels: object, sentence: str, pointer: str) -> None:
    detail, pointers = refusal(LATENT, LABEL, labels=labels)
    assert sentence in detail
    assert pointers == [pointer]


def test_a_text_of_digits_is_a_name_where_a_class_is_called_so() -> None:
    years = TensorSpec(name="label", kind="label", shape=(3,), classes=("2", "7", "0"))
    assert encode_labels(years, ["2", 2, "0", "1"], 4).argmax(1).tolist() == [0, 2, 2, 1]


def test_every_class_has_as_many_images_in_their_order() -> None:
    assert every_class(LABEL, None, 2, 256) == ([0, 0, 1, 1, 2, 2], 2)
    assert every_class(LABEL, 3, 8, 256) == ([0, 1, 2], 1)
    hundred = TensorSpec(name="label", kind="label", shape=(100,))
    assert every_class(hundred, None, 8, 256)[1] == 2
    for num_images in (1, 4, 256):
        with pytest.raises(Invalid, match="it is a multiple of the 3 classes, 3 to 255"):
            every_class(LABEL, num_images, 8, 256)
    with pytest.raises(Invalid, match="this model has 100 classes, and 99 images are the most"):
        every_class(hundred, None, 8, 99)


def test_candidates_of_an_image_follow_each_other_with_its_label() -> None:
    encoded = encode((LATENT, LABEL), Fields(seed=4, labels=["bag", "shoe"]), 2, num_candidates=3)
    assert encoded.seeds == (4, 5, 6, 7, 8, 9)
    assert encoded.inputs["label"].argmax(1).tolist() == [2, 2, 2, 1, 1, 1]
    assert torch.equal(encoded.inputs["latent"], encode((LATENT,), Fields(seed=4), 6).inputs["latent"])


def test_classes_without_names_are_called_by_their_index() -> None:
    assert encode_labels(UNNAMED, [1], 1).tolist() == [[0, 1, 0]]
    with pytest.raises(Invalid, match="no such class; classes: 0 to 2"):
        encode_labels(UNNAMED, ["shoe"], 1)


@given(st.dictionaries(st.sampled_from(LABEL.classes or ()), st.floats(0, 1e300, allow_nan=False), min_size=1))
def test_weights_always_sum_to_one_or_are_refused(weights: dict[str, float]) -> None:
    try:
        row = encode_labels(LABEL, [weights], 1)
    except Invalid:
        assert sum(weights.values()) == 0
    else:
        assert row.sum().item() == pytest.approx(1.0)
        assert row.isfinite().all()
