"""Turns texts into the tokens of one modality, with a tokenizer as Hugging Face saves it (tokenizer.json)."""
from pathlib import Path

import numpy as np

from command_line import open_regular
from container import DataError

LARGEST_TEXT = 1 << 24  # bytes of one text


def load_tokenizer(folder):
    """The folder's tokenizer, without its own padding and truncation."""
    path = Path(folder) / "tokenizer.json"
    try:
        with open_regular(path) as file:
            content = file.read()
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; transformers writes it: AutoTokenizer.from_pretrained(...).save_pretrained(FOLDER)") from None
    import tokenizers

    try:
        tokenizer = tokenizers.Tokenizer.from_buffer(content)
    except Exception as error:  # the library has no class of its own
        raise DataError(f"{path}: is no tokenizer ({str(error)[:300]})") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def read_text(path):
    """The text of a file, without spaces around it. ValueError: what is wrong, for people."""
    with open_regular(path) as file:
        content = file.read(LARGEST_TEXT + 1)
    if len(content) > LARGEST_TEXT:
        raise ValueError(f"has more than {LARGEST_TEXT} bytes; expected the text of one sample")
    try:
        return content.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 text ({error.reason} at byte {error.start})") from None


class Texts:
    """One text per row, tokenized with the special tokens that the tokenizer adds; an empty text is none. Only one is in memory at
    a time, so each is tokenized twice: to know its length, and to write it. What it has in common with the other kinds of
    modalities: see Recordings.

    source: what the texts come from, for messages. text_of(row): the text; "" where there is none."""

    dtype, sample_rate = "int32", None

    def __init__(self, name, source, text_of, manifest, ids, options, problems):
        self.name, self.manifest, self.ids, self.dim = name, manifest, ids, 1
        self.lengths, self.cropped = np.full(len(ids), -1, dtype=np.int64), 0
        self.source, self._text_of, self._folder, self._limit = source, text_of, options.tokenizer, options.max_tokens.get(name)
        self._tokenizer = load_tokenizer(options.tokenizer)
        if self._limit:
            own = self._tokenizer.num_special_tokens_to_add(False)
            if self._limit <= own:
                raise DataError(f"--max-tokens {name}={self._limit}: the tokenizer itself adds {own} tokens to each text")
            self._tokenizer.enable_truncation(self._limit)
        for row in range(len(ids)):
            try:
                text = text_of(row)
                if not text:
                    self.lengths[row] = 0
                    if options.missing == "error":
                        self.lengths[row] = -1
                        problems.append(f'{manifest.where(row)}: no text in {source(row)}; --missing empty takes it as "has no {name}"')
                    continue
                encoding = self._encode(text)
                self.lengths[row] = len(encoding.ids)
                self.cropped += bool(encoding.overflowing)
                if any(encoding.type_ids):
                    self.dim = 2
            except DataError as error:
                problems.append(f"{error} ({manifest.where(row)})")
            except ValueError as error:
                problems.append(f"{source(row)}: {error} ({manifest.where(row)})")

    def _encode(self, text):
        try:
            encoding = self._tokenizer.encode(text)
        except Exception as error:  # the library has no class of its own
            raise ValueError(f"cannot be tokenized ({str(error)[:300]})") from None
        if not encoding.ids:
            raise ValueError("the tokenizer makes no token of it")
        return encoding

    def copy(self, options, out, progress, problems):
        """Writes every good text, if `out` is given."""
        if out is None:
            return
        for row in np.flatnonzero(self.lengths >= 0):
            tokens = np.zeros((0, self.dim), dtype=np.int32)
            if self.lengths[row] > 0:
                try:
                    encoding = self._encode(self._text_of(row))
                except (DataError, ValueError) as error:  # it has changed since it was first read
                    problems.append(f"{self.source(row)}: {error} ({self.manifest.where(row)})")
                    return
                tokens = np.array([encoding.ids, encoding.type_ids][:self.dim], dtype=np.int64).T
                progress.add(tokens.nbytes)
            out.append(self.name, tokens)

    def describe(self, present, missing, replaced):
        text = f"tokens of {self._folder}, {present.sum()} in all, {present.min()} to {present.max()} per sample, missing for {missing}"
        if self.dim == 2:
            text += ", with segment ids"
        return text + (f", {self.cropped} cropped to {self._limit} tokens" if self._limit else "")
