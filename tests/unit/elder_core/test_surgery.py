import pytest
def test_x(tiny_llama, tiny_checkpoint, make_tiny):
    import torch, os
    print(os.listdir(tiny_checkpoint), (tiny_checkpoint/"config.json").read_text())
    with torch.no_grad():
      for m in ["llama","mistral","qwen2","qwen3","gpt2","gpt_neox","opt"]:
        mod = make_tiny(m)
        x = torch.arange(20)[None]+5
        out = mod(x, output_hidden_states=True)
        print(m, type(out.past_key_values), [round(float((b-a).norm()/a.norm()),2) for a,b in zip(out.hidden_states,out.hidden_states[1:])], out.logits.std())
    from transformers import AutoTokenizer
    t=AutoTokenizer.from_pretrained(tiny_checkpoint)
    print(t("abc é")["input_ids"], t.decode(t("abc é")["input_ids"]), t.chat_template)
