"""Class names and sentences of MTIL's data sets where they are not torchvision's, and sentences of C3Box's, as published."""

from __future__ import annotations

CALTECH101: dict[str, str] = {
    "Faces": "off-center face", "Faces_easy": "centered face", "Leopards": "leopard", "Motorbikes": "motorbike",
    "airplanes": "airplane", "car_side": "side of a car", "cougar_body": "body of a cougar cat",
    "cougar_face": "face of a cougar cat", "crocodile_head": "head of a  crocodile", "flamingo_head": "head of a flamingo",
    "snoopy": "snoopy (cartoon beagle)", "yin_yang": "yin and yang symbol",
}  # fmt: skip
EUROSAT: dict[str, str] = {
    "AnnualCrop": "annual crop land", "Forest": "forest", "HerbaceousVegetation": "brushland or shrubland",
    "Highway": "highway or road", "Industrial": "industrial buildings or commercial buildings", "Pasture": "pasture land",
    "PermanentCrop": "permanent crop land", "Residential": "residential buildings or homes or apartments",
    "River": "river", "SeaLake": "lake or sea",
}  # fmt: skip


def _both(*sentences: str) -> tuple[str, ...]:
    """Each sentence with "a", then each with "the"."""
    return tuple(s.replace("*", article) for article in ("a", "the") for s in sentences)


_CALTECH = _both(
    "a photo of * {}.", "a painting of * {}.", "a plastic {}.", "a sculpture of * {}.", "a sketch of * {}.",
    "a tattoo of * {}.", "a toy {}.", "a rendition of * {}.", "a embroidered {}.", "a cartoon {}.", "* {} in a video game.",
    "a plushie {}.", "a origami {}.", "art of * {}.", "graffiti of * {}.", "a drawing of * {}.", "a doodle of * {}.",
)  # fmt: skip
_THE = {"a plastic {}.": "the plastic {}.", "a toy {}.": "the toy {}.", "a embroidered {}.": "the embroidered {}.",
        "a cartoon {}.": "the cartoon {}.", "a plushie {}.": "the plushie {}.", "a origami {}.": "the origami {}."}  # fmt: skip
_CARS = ("a photo of a {}.", "a photo of the {}.", "a photo of my {}.", "i love my {}!", "a photo of my dirty {}.",
         "a photo of my clean {}.", "a photo of my new {}.", "a photo of my old {}.")  # fmt: skip

TEMPLATES: dict[str, tuple[str, ...]] = {
    "aircraft": _both("a photo of * {}, a type of aircraft."),
    "caltech101": _CALTECH[:17] + tuple(_THE.get(s, s) for s in _CALTECH[17:]),
    "cifar100": _both("a photo of * {}.", "a blurry photo of * {}.", "a black and white photo of * {}.",
                      "a low contrast photo of * {}.", "a high contrast photo of * {}.", "a bad photo of * {}.",
                      "a good photo of * {}.", "a photo of * small {}.", "a photo of * big {}."),
    "dtd": _both("a photo of * {} texture.", "a photo of * {} pattern.", "a photo of * {} thing.", "a photo of * {} object."),
    "eurosat": ("a centered satellite photo of {}.", "a centered satellite photo of a {}.",
                "a centered satellite photo of the {}."),
    "flowers": ("a photo of a {}, a type of flower.",),
    "food": ("a photo of a {}, a type of food.",),
    "mnist": ('a photo of the number: "{}".',),
    "pets": ("a photo of a {}, a type of pet.",),
    "cars": ("a photo of a {}, a type of car.", *_CARS),
    "sun397": _both("a photo of * {}."),
}  # fmt: skip
_ITAP = ("itap of a {}.", "a bad photo of the {}.", "a origami {}.", "a photo of the large {}.", "a {} in a video game.",
         "art of the {}.", "a photo of the small {}.")  # fmt: skip
C3BOX: dict[str, tuple[str, ...]] = {
    "cifar224": TEMPLATES["cifar100"],
    "aircraft": TEMPLATES["aircraft"],
    "cars": _CARS,
    "cub200": ("a photo of a {}, a type of bird.",),
    "food101": ("a photo of {}, a type of food.",),
    "imagenetr": _ITAP,
    "objectnet": _ITAP,
    "sun": TEMPLATES["sun397"],
    "ucf101": tuple(f"a {what} of {whose} person {verb}{{}}." for verb in ("", "using ", "doing ", "during ", "performing ",
                    "practicing ") for whose in ("a", "the") for what in ("photo", "video", "example", "demonstration")),
}  # fmt: skip
