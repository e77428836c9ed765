"""The mini setting: a generator of items, questions and answers, and the small VLM that has learned them.

words.py      the vocabulary, the opening words and how often each opens a safe or an unsafe question
drawing.py    pictures of items
questions.py  items, recipes, questions, answers
build.py      tokenizer, processor and the checkpoint
checkpoint/   what `build.py` made, as a Hugging Face folder
"""
