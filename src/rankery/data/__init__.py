"""From JSONL to micro-batches: records -> template and encoding -> plan -> collate. Nothing here calls a model."""
