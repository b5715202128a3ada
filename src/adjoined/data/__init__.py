"""Labelled images for training and evaluation: known data sets, and your own folders."""

from adjoined.data.info import DataInfo
from adjoined.data.measuring import open_to_measure
from adjoined.data.opening import ImageData, open_data
from adjoined.data.preprocessing import load_image, preprocess
from adjoined.data.record import DataRecord
from adjoined.data.settings import DataSettings

__all__ = [
    "DataInfo",
    "DataRecord",
    "DataSettings",
    "ImageData",
    "load_image",
    "open_data",
    "open_to_measure",
    "preprocess",
]
