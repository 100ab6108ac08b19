"""A text encoder without a neural network: words weighted by rarity, projected on their main directions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sklearn.feature_extraction.text import TfidfVectorizer
    from torch import Tensor


@dataclass(frozen=True)
class TextEncoder:
    """Latent semantic analysis: TF-IDF, then the directions of the largest singular values; see `fit_encoder`.

    Attributes:
        weights: counts words and weights each by its rarity.
        directions: (words, d) float64, orthonormal columns.
    """

    weights: TfidfVectorizer
    directions: Tensor

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Texts to vectors of length 1 (n, d) float64; a text without any known word becomes zero."""
        counted = torch.from_numpy(self.weights.transform(texts).toarray())  # (n, words)
        return torch.nn.functional.normalize(counted @ self.directions)


def fit_encoder(texts: Sequence[str], d: int) -> TextEncoder:
    """Learn the words' rarity and the d main directions from `texts`.

    Raises:
        ValueError: fewer than d texts or words.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    weights = TfidfVectorizer(sublinear_tf=True, dtype=np.float64)
    counted = weights.fit_transform(texts).toarray()  # (n, words)
    if min(counted.shape) < d:
        raise ValueError(f"{counted.shape[0]} texts with {counted.shape[1]} words do not span {d} directions")
    _, _, directions = np.linalg.svd(counted, full_matrices=False)
    return TextEncoder(weights, torch.from_numpy(directions[:d].T.copy()))
