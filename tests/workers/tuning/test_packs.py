"""Packs written by hand, and what every pack keeps."""

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import cross_entropy

from workers.tuning.packs import NOT_SCORED, Pack, SpecialTokens, pack

BOTH = SpecialTokens(1, 2)


def tokens(*ids: int) -> npt.NDArray[np.int32]:
    return np.array(ids, dtype=np.int32)


def two_documents(*, attend_across: bool) -> Pack:
    pieces = [BOTH.around(tokens(7, 8, 9), num_tokens=5), BOTH.around(tokens(5, 6, 7, 8), num_tokens=4)]
    return pack(pieces, window="short", attend_across=attend_across, documents=(3, 0))


def test_a_short_pack_is_what_one_writes_by_hand() -> None:
    short = two_documents(attend_across=False)
    assert short.token_ids.tolist() == [1, 7, 8, 9, 2, 1, 5, 6, 7]
    assert short.position_ids.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3]
    assert short.starts.tolist() == [0, 5, 9]
    assert short.labels.tolist() == [NOT_SCORED, 7, 8, 9, 2, NOT_SCORED, 5, 6, 7]
    assert (short.window, short.documents, short.num_scored) == ("short", (3, 0), 7)


def test_a_pack_with_attention_across_documents_is_one_stretch() -> None:
    long = two_documents(attend_across=True)
    assert long.token_ids.tolist() == [1, 7, 8, 9, 2, 1, 5, 6, 7]
    assert long.position_ids.tolist() == list(range(9))
    assert long.starts.tolist() == [0, 9]
    assert long.labels.tolist() == [NOT_SCORED, 7, 8, 9, 2, 1, 5, 6, 7]


def test_a_whole_document_has_one_beginning_and_one_end_and_a_cut_one_no_end() -> None:
    assert BOTH.around(tokens(7, 8), num_tokens=4).tolist() == [1, 7, 8, 2]
    assert BOTH.around(tokens(7, 8), num_tokens=3).tolist() == [1, 7, 8]
    assert BOTH.around(tokens(7, 8), num_tokens=1).tolist() == [1]


def test_a_tokenizer_without_special_tokens_leaves_them_out() -> None:
    assert SpecialTokens(None, 2).around(tokens(7, 8), num_tokens=9).tolist() == [7, 8, 2]
    assert SpecialTokens(1, None).around(tokens(7, 8), num_tokens=9).tolist() == [1, 7, 8]
    neither = SpecialTokens(None, None)
    assert neither.around(tokens(7, 8), num_tokens=9).tolist() == [7, 8]
    assert (BOTH.num_tokens, neither.num_tokens) == (2, 0)


def test_token_ids_and_labels_are_of_the_type_that_torch_takes() -> None:
    short = two_documents(attend_across=False)
    logits = torch.zeros(len(short.labels) - 1, 10)
    # All logits alike: ln 10 for each scored token, whatever it is.
    loss = cross_entropy(logits, torch.from_numpy(short.labels)[1:], ignore_index=NOT_SCORED, reduction="sum")
    assert torch.isclose(loss, short.num_scored * torch.log(torch.tensor(10.0)))
    assert torch.from_numpy(short.token_ids).dtype == torch.int64
    assert torch.from_numpy(short.starts).dtype == torch.int32
