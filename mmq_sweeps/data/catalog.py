"""Files of each published set: official URLs, sizes, digests, and destinations.

None of the sets publishes digests of its archives. Those listed here were recorded by others who downloaded them:

- COCO's archives: tensorflow/datasets ``tensorflow_datasets/url_checksums/coco.txt`` (sizes and SHA-256) and
  pytorch/vision ``torchvision/prototype/datasets/_builtin/coco.py`` (SHA-256).
- VQA's archives: facebookresearch/ParlAI ``parlai/tasks/vqa_v2/build.py`` (SHA-256); sizes from another project that
  states the same SHA-256.
- ``caption_datasets.zip``: several public projects that downloaded it state the same size and SHA-256.
- GQA's archives: no digest is known. Their sizes are rounded, as guides to GQA state them.

An archive without a digest here is checked against the digest recorded at its first download.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mmq_sweeps.data.coco import CocoCaptions, CocoKarpathy
from mmq_sweeps.data.flickr30k import Flickr30k
from mmq_sweeps.data.gqa import Gqa
from mmq_sweeps.data.published import PublishedData
from mmq_sweeps.data.vqav2 import VqaV2


@dataclass(frozen=True)
class Content:
    """Archive members with base name matching ``pattern``, and their destination ``folder`` below the root."""

    pattern: str
    folder: str = "."


@dataclass(frozen=True)
class Archive:
    """Downloadable file; ``size`` in bytes is exact if ``sha256`` is given, otherwise approximate."""

    url: str
    size: int
    contents: tuple[Content, ...]
    sha256: str | None = None

    @property
    def file(self) -> str:
        return self.url.rpartition("/")[2]


@dataclass(frozen=True)
class DataSet:
    """Published set: ``archives`` hold the evaluation images and all annotations, ``training`` the calibration images.

    ``singles``, if given, is a base URL that serves single training images by their path below the root. ``by_hand``
    explains how to get images that no program may download; they go to ``by_hand_folder``.
    """

    name: str
    title: str
    terms: str
    archives: tuple[Archive, ...]
    reader: Callable[..., PublishedData[Any]]
    evaluation_split: str
    training_split: str
    training: tuple[Archive, ...] = ()
    singles: str = ""
    by_hand: str = ""
    by_hand_folder: str = ""


_COCO = "http://images.cocodataset.org"
_VQA = "https://s3.amazonaws.com/cvmlp/vqa/mscoco/vqa"
_GQA = "https://downloads.cs.stanford.edu/nlp/data/gqa"
_COCO_TERMS = "annotations CC BY 4.0; images under Flickr's terms: https://cocodataset.org/#termsofuse"

_COCO_IMAGES = {
    "val2017": (815_585_330, "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05"),
    "train2017": (19_336_861_798, "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929"),
    "val2014": (6_645_013_297, "fe9be816052049c34717e077d9e34aa60814a55679f804cd043e3cbee3b9fde0"),
    "train2014": (13_510_573_713, "ede4087e640bddba550e090eae701092534b554b42b05ac33f0300b984b31775"),
}


def _coco_images(split: str) -> Archive:
    size, sha256 = _COCO_IMAGES[split]
    return Archive(f"{_COCO}/zips/{split}.zip", size, (Content("*.jpg", split),), sha256)


def _vqa(file: str, member: str, size: int, sha256: str) -> Archive:
    return Archive(f"{_VQA}/{file}", size, (Content(member),), sha256)


_KARPATHY = Archive(
    "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip",
    36_745_453,
    (Content("dataset_coco.json"), Content("dataset_flickr30k.json")),
    "4cfd70132527b80933105e5829dc9034eaab9573482e2e680abbab6130244817",
)


COCO_CAPTION = DataSet(
    name="coco_caption",
    title="COCO captions 2017: 5,000 images of val2017 with about five captions each",
    terms=_COCO_TERMS,
    archives=(
        Archive(
            f"{_COCO}/annotations/annotations_trainval2017.zip",
            252_907_541,
            (Content("captions_*2017.json", "annotations"),),
            "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
        ),
        _coco_images("val2017"),
    ),
    training=(_coco_images("train2017"),),
    reader=CocoCaptions,
    evaluation_split="val2017",
    training_split="train2017",
    singles=_COCO,
)

COCO_KARPATHY = DataSet(
    name="coco_karpathy",
    title="COCO captions, Karpathy's splits: 5,000 test images of val2014",
    terms=_COCO_TERMS,
    archives=(_KARPATHY, _coco_images("val2014")),
    training=(_coco_images("train2014"),),
    reader=CocoKarpathy,
    evaluation_split="test",
    training_split="train",
    singles=_COCO,
)

FLICKR30K = DataSet(
    name="flickr30k",
    title="Flickr30k, Karpathy's splits: 1,000 test images with five captions each",
    terms="images for non-commercial research and education, under Flickr's terms: https://shannon.cs.illinois.edu/DenotationGraph/",
    archives=(_KARPATHY,),
    reader=Flickr30k,
    evaluation_split="test",
    training_split="train",
    by_hand=(
        "Flickr30k's images are given to those who ask for them with the form at https://forms.illinois.edu/sec/229675; "
        "name the folder or archive that you get with --images"
    ),
    by_hand_folder="flickr30k-images",
)

VQAV2 = DataSet(
    name="vqav2",
    title="VQA v2: 214,354 questions about the images of val2014, ten answers each",
    terms=f"questions and answers: https://visualqa.org/terms.html; COCO's {_COCO_TERMS}",
    archives=(
        _vqa(
            "v2_Questions_Val_mscoco.zip",
            "v2_OpenEnded_mscoco_val2014_questions.json",
            3_494_929,
            "e71f6c5c3e97a51d050f28243e262b28cd0c48d11a6b4632d769d30d3f93222a",
        ),
        _vqa(
            "v2_Annotations_Val_mscoco.zip",
            "v2_mscoco_val2014_annotations.json",
            10_518_930,
            "0caae7c8d1dafd852727f5ac046bc1efca9b72026bd6ffa34fc489f3a7b3291e",
        ),
        _vqa(
            "v2_Questions_Train_mscoco.zip",
            "v2_OpenEnded_mscoco_train2014_questions.json",
            7_239_401,
            "05a64b6e2582d06d7585f5429674a9a33851878be1bff9f8668cdcf792df611e",
        ),
        _vqa(
            "v2_Annotations_Train_mscoco.zip",
            "v2_mscoco_train2014_annotations.json",
            21_708_861,
            "fb101bcefe91422c543c2bb6d70af11eb3119d0ff745ae283d09acdf66250853",
        ),
        _coco_images("val2014"),
    ),
    training=(_coco_images("train2014"),),
    reader=VqaV2,
    evaluation_split="val2014",
    training_split="train2014",
    singles=_COCO,
)

GQA = DataSet(
    name="gqa",
    title="GQA: 12,578 questions about the 398 images of the balanced testdev split",
    terms="https://cs.stanford.edu/people/dorarad/gqa/; images of Visual Genome and COCO",
    archives=(
        Archive(
            f"{_GQA}/questions1.2.zip",
            1_400_000_000,
            (Content("testdev_balanced_questions.json"), Content("train_balanced_questions.json")),
        ),
        Archive(f"{_GQA}/images.zip", 20_300_000_000, (Content("*.jpg", "images"),)),
    ),
    reader=Gqa,
    evaluation_split="testdev_balanced",
    training_split="train_balanced",
)

SETS: Mapping[str, DataSet] = {one.name: one for one in (COCO_CAPTION, COCO_KARPATHY, FLICKR30K, VQAV2, GQA)}
