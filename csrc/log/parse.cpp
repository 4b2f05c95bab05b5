// The tokenizer of the log.
