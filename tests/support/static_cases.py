"""The texts that make_static_goldens.py embeds."""

TEXTS = [
    "A man is playing the guitar.",
    "the ☃ cat",
    "rain",
    "rain in paris, sun in paris? the dog eats slow anna",
    "fast " * 300,
]
