"""Linears whose weights are stored in few bits; torch alone, and bitsandbytes where it is installed."""
