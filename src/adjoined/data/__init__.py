"""Labelled images for training and evaluation: known data sets, and folders of your own."""

from adjoined.data.info import DataInfo
from adjoined.data.opening import ImageData, open_data
from adjoined.data.preprocessing import load_image, preprocess
from adjoined.data.settings import DataSettings

__all__ = ["DataInfo", "DataSettings", "ImageData", "load_image", "open_data", "preprocess"]
