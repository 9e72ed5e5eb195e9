"""Images and what is made of them: decoding, packed corpora, folds, views."""
