"""Reader of the documents of an lmms-eval task."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from mmq_sweeps.data.images import pixels_digest
from mmq_sweeps.data.lmms import library
from mmq_sweeps.data.lmms.catalog import TaskYaml, find_task
from mmq_sweeps.data.lmms.network import refuse_asking
from mmq_sweeps.data.lmms.sources import data_place, refuse_unfit, task_sources
from mmq_sweeps.data.published import drawn
from mmq_sweeps.identity.contents import content_digest
from mmq_sweeps.identity.roles import LABEL

# Splits of loaded tasks that their yaml does not name, and that ``process_docs`` has been applied to.
_PROCESSED: dict[int, set[str]] = {}


@dataclass(frozen=True, eq=False)
class Document:
    """A document with its prompt and right texts; ``id`` is lmms-eval's ``doc_id``, its place in the split.

    ``doc`` has no images, as the task's functions that score are given it; ``images`` decodes them at every access.
    """

    id: str
    text: Any
    references: tuple[str, ...]
    doc: Any
    task: Any
    split: str

    @property
    def images(self) -> list[Image.Image]:
        """Result of ``doc_to_visual``; a ValueError if something of it is no image."""
        # Called in a thread that prepares inputs while the model runs, from which nothing else of the process may be changed.
        with library.truncated_allowed():
            found = self.task.doc_to_visual(self.task.dataset[self.split][int(self.id)])
        shown = [one for one in found or [] if one is not None]
        if (other := next((one for one in shown if not isinstance(one, Image.Image)), None)) is not None:
            raise ValueError(f"document {self.id}: doc_to_visual gives {type(other).__name__}, which is no image")
        return shown

    @cached_property
    def _looked_at(self) -> tuple[list[str], str | None]:
        """Digests of its images, and the problem with them."""
        try:
            return [pixels_digest(image)[:16] for image in self.images], None
        except Exception as error:  # noqa: BLE001 - the code is anyone's
            return [], f"its images cannot be had: {type(error).__name__}: {error}"

    @property
    def image_count(self) -> int:
        """How many images it has; 0 if there is a ``problem``. They are decoded once for this."""
        return len(self._looked_at[0])

    @property
    def group(self) -> str:
        """Key that documents about the same images share; empty for one without images."""
        return "+".join(self._looked_at[0])

    @property
    def problem(self) -> str | None:
        """The reason why its images cannot be had, or None."""
        return self._looked_at[1]

    @property
    def id_of_set(self) -> str:
        """Its text, which tells a document without images from those of another split, whose ids are counted anew."""
        return str(self.text)

    @property
    def image(self) -> Image.Image | None:
        """The first image; None if there is none."""
        return next(iter(self.images), None)


@dataclass(frozen=True)
class LmmsDocuments:
    """The first ``count`` documents of a split, or all with None; with ``seed`` a sample, drawn by digests of their ids.

    ``lmms_task`` is a task of the installed library or of the yaml files below ``include_path``. ``split`` is a split of its
    data set, or the key of its yaml that names one: ``test_split``, ``validation_split``, ``training_split``,
    ``fewshot_split``. ``lmms_model`` is lmms-eval's name of the model whose prompts apply (its ``--model``); None takes those
    for any. ``dataset_path`` is a folder with a copy of the data set. Without ``allow_network``, a task whose code
    may ask a server to score every document is refused.
    """

    lmms_task: str
    split: str
    include_path: str | None = field(default=None, metadata=LABEL)  # ids hold the files' contents
    lmms_model: str | None = None
    dataset_path: str | None = field(default=None, metadata=LABEL)
    allow_network: bool = field(default=False, metadata=LABEL)
    count: int | None = None
    seed: int | None = None

    known_as: ClassVar[str] = "lmms_documents"
    # Images lie in the tables of the data set, whose files are among the sources.
    has_files: ClassVar[bool] = False

    def sources(self) -> list[Path]:
        """Return the task's yaml and code, the library's own, and the files of the data set."""
        task = self.yaml
        refuse_unfit(task)
        if not self.allow_network:
            refuse_asking(task)
        return [*task_sources(task), *data_place(task, self.dataset_path).files]

    @property
    def yaml(self) -> TaskYaml:
        """The task's configuration as its yaml files say."""
        return find_task(self.lmms_task, self.include_path)

    def load(self) -> Any:
        """Return lmms-eval's own object of the task."""
        contents = content_digest(self.sources())
        return library.load_task(self.lmms_task, self.include_path, self.lmms_model, self.dataset_path, contents)

    def __iter__(self) -> Iterator[Document]:
        task, split = self.load(), self.yaml.split_named(self.split)
        docs = self._docs(task, split)
        places = range(len(docs))
        chosen = places[: self.count] if self.seed is None else drawn(places, self.seed, self.count, str)
        # Texts draw few-shot examples and may shuffle: made all at once, from the seeds, they are the same at every reading.
        with library.contained():
            library.start_fewshot(task)
            documents = [self._document(task, split, place, docs[place]) for place in chosen]
        yield from documents

    def _docs(self, task: Any, split: str) -> Any:
        """Return the documents of a split without their images, as ``process_docs`` leaves them."""
        if split not in task.dataset:
            raise ValueError(
                f"split={split}: the data set of lmms-eval's task {self.lmms_task} has {', '.join(task.dataset)}"
            )
        config = task.config
        named = (config.training_split, config.validation_split, config.test_split, config.fewshot_split)
        if config.process_docs is not None and split not in (*named, *_PROCESSED.get(id(task), ())):
            # lmms-eval does this for the splits that the yaml names.
            shown = set(task.dataset[split].column_names) - set(task.dataset_no_image[split].column_names)
            with library.contained():
                task.dataset[split] = config.process_docs(task.dataset[split])
            without = [name for name in task.dataset[split].column_names if name in shown]
            task.dataset_no_image[split] = task.dataset[split].remove_columns(without)
            _PROCESSED.setdefault(id(task), set()).add(split)
        return task.dataset_no_image[split]

    def _document(self, task: Any, split: str, place: int, doc: Any) -> Document:
        try:
            text, right = task.fewshot_context(doc, task.config.num_fewshot), task.doc_to_target(doc)
            if isinstance(right, int) and task.config.doc_to_choice is not None:
                right = task.doc_to_choice(doc)[right]
        except Exception as error:
            raise ValueError(
                f"lmms_task={self.lmms_task}: cannot ask document {place} of {split}: {type(error).__name__}: {error}"
            ) from error
        texts = right if isinstance(right, list | tuple) else [] if right is None else [right]
        return Document(str(place), text, tuple(map(str, texts)), doc, task, split)
