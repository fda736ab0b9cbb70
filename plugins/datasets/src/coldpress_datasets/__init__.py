"""Data sets of the hub that models are calibrated with, by the names that llm-compressor's users know."""

from coldpress_datasets.conversations import PERFECTBLEND, ULTRACHAT_200K
from coldpress_datasets.media import FLICKR30K, PEOPLES_SPEECH
from coldpress_datasets.texts import C4, CNN_DAILYMAIL, EVOLCODEALPACA, GSM8K, OPEN_PLATYPUS, WIKITEXT

__version__ = "0.1.0"

__all__ = [
    "C4",
    "CNN_DAILYMAIL",
    "EVOLCODEALPACA",
    "FLICKR30K",
    "GSM8K",
    "OPEN_PLATYPUS",
    "PEOPLES_SPEECH",
    "PERFECTBLEND",
    "ULTRACHAT_200K",
    "WIKITEXT",
]
