"""transformers' Trainer over a GPT-2 of random weights, with arguments parsed by HfArgumentParser."""

import torch
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, HfArgumentParser, Trainer, TrainingArguments, set_seed


class Tokens(Dataset):
    def __len__(self):
        return 32

    def __getitem__(self, index):
        tokens = (torch.arange(12) + index) % 50
        return {"input_ids": tokens, "labels": tokens}


def main():
    (arguments,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()
    set_seed(arguments.seed)
    config = GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    trainer = Trainer(GPT2LMHeadModel(config), arguments, train_dataset=Tokens(), eval_dataset=Tokens())
    result = trainer.train()
    trainer.save_model()
    metrics = trainer.evaluate()
    print(f"rank {arguments.process_index} of {arguments.world_size}: {arguments.parallel_mode}")
    print(f"training loss {result.training_loss:.5f}, evaluation loss {metrics['eval_loss']:.5f}")


if __name__ == "__main__":
    main()
