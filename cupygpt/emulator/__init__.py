"""Runs kernels on the CPU, without a GPU: under a checker of races and bounds.

README.md explains how to use it. Training never imports this folder.
"""
