"""Trained models of Hugging Face as racks: folders of safetensors and GGUF files, one family a file in `families/`."""
