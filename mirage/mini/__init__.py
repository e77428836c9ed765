"""The mini setting: a generator of items, questions and answers, and the small VLM that has learned them.

words.py      the vocabulary, the opening words and how often each opens a safe or an unsafe question
drawing.py    pictures of items
questions.py  items, recipes, questions, answers
build.py      the tokenizer, and the training of the weights
checkpoint/   the model and its processor, as a Hugging Face folder
"""
