"""Adjoined training in other trainers and libraries: Lightning, timm, Hugging Face, torchvision's detectors."""
