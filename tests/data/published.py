"""Chat formats of well-known models, each rebuilt from its description.

The templates are short, but do what their publishers' do: where they trim, what they refuse, what
they say of the day, where the system turn goes and what becomes of earlier thoughts.
"""

from typing import NamedTuple

from ideal_jax.data.tokenizers import byte_tokenizer


class Published(NamedTuple):
    """A chat format.

    Attributes:
      template: Jinja.
      specials: tokens to add besides eos and bos.
      stop: what ends an answer.
      eos, bos: tokens of the tokenizer.
      lead: what an answer begins with.
      between: what is learned between an answer and ``stop``.
      system: whether it takes a system turn.
      earlier: whether earlier turns stay as they were, so that all can be learned.
      tools: whether it writes tools and calls.
      trims: whether it trims what is said.
    """

    template: str
    specials: tuple[str, ...]
    stop: str
    eos: str | None = None
    bos: str | None = None
    lead: str = ""
    between: str = ""
    system: bool = True
    earlier: bool = True
    tools: bool = False
    trims: bool = False


_ALTERNATE = (
    "{% for m in turns %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception("
    "'Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
)
_SYSTEM_FIRST = (
    "{% if messages[0].role == 'system' %}{% set first = messages[0].content %}"
    "{% set turns = messages[1:] %}{% else %}{% set first = '' %}{% set turns = messages %}"
    "{% endif %}"
)
_IM = ("<|im_start|>", "<|im_end|>")
_CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

MODELS = {
    "chatml": Published(_CHATML, _IM, "<|im_end|>", eos="<|endoftext|>"),
    # Blocks that leave out the end of turn.
    "chatml, block of content": Published(
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}"
        "{{ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        _IM,
        "<|im_end|>",
        eos="<|endoftext|>",
    ),
    "llama-2": Published(
        _SYSTEM_FIRST + _ALTERNATE + "{% if loop.first and first %}{% set said = '<<SYS>>\n' + "
        "first + '\n<</SYS>>\n\n' + m.content %}{% else %}{% set said = m.content %}{% endif %}"
        "{% if m.role == 'user' %}{{ bos_token + '[INST] ' + said | trim + ' [/INST]' }}"
        "{% else %}{{ ' ' + said | trim + ' ' + eos_token }}{% endif %}{% endfor %}",
        (),
        "</s>",
        eos="</s>",
        bos="<s>",
        lead=" ",
        between=" ",
        trims=True,
    ),
    "llama-3.1": Published(
        "{{ bos_token }}{% if not date_string is defined %}"
        "{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
        + _SYSTEM_FIRST
        + "{{ '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + date_string }}"
        "{% if tools is not none %}{% for t in tools %}{{ t | tojson(indent=4) + '\n\n' }}"
        "{% endfor %}{% endif %}{{ '\n\n' + first | trim + '<|eot_id|>' }}{% for m in turns %}"
        "{% if m.tool_calls %}{% if m.tool_calls | length != 1 %}"
        "{{ raise_exception('This model only supports single tool-calls at once!') }}{% endif %}"
        "{% set call = m.tool_calls[0].function %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' + '{\"name\": \"' + call.name + "
        '\'", "parameters": \' + call.arguments | tojson + "}" + "<|eom_id|>" }}'
        "{% elif m.role in ['tool', 'ipython'] %}"
        "{{ '<|start_header_id|>ipython<|end_header_id|>\n\n' + m.content | tojson }}"
        "{{ '<|eot_id|>' }}"
        "{% else %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim "
        "+ '<|eot_id|>' }}{% endif %}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>"),
        "<|eot_id|>",
        eos="<|end_of_text|>",
        bos="<|begin_of_text|>",
        tools=True,
        trims=True,
    ),
    "mistral v1": Published(
        "{{ bos_token }}{% set turns = messages %}"
        + _ALTERNATE
        + "{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
        "{% else %}{{ m.content + eos_token + ' ' }}{% endif %}{% endfor %}",
        (),
        "</s>",
        eos="</s>",
        bos="<s>",
        system=False,
    ),
    # The system turn moves along to the last user turn.
    "mistral v3": Published(
        "{{ bos_token }}"
        + _SYSTEM_FIRST
        + _ALTERNATE
        + "{% if m.role == 'user' %}{% if loop.last and first %}"
        "{{ '[INST] ' + first + '\n\n' + m.content + '[/INST]' }}{% else %}"
        "{{ '[INST] ' + m.content + '[/INST]' }}{% endif %}"
        "{% else %}{{ ' ' + m.content | trim + eos_token }}{% endif %}{% endfor %}",
        ("[INST]", "[/INST]"),
        "</s>",
        eos="</s>",
        bos="<s>",
        lead=" ",
        system=False,
        trims=True,
    ),
    "mistral small": Published(
        "{% set today = strftime_now('%Y-%m-%d') %}{{ bos_token }}"
        + _SYSTEM_FIRST
        + "{{ '[SYSTEM_PROMPT]' + (first or 'The current date is ' + today + '.') + "
        "'[/SYSTEM_PROMPT]' }}"
        + _ALTERNATE
        + "{% if m.role == 'user' %}{{ '[INST]' + m.content + '[/INST]' }}"
        "{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}",
        ("[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),
        "</s>",
        eos="</s>",
        bos="<s>",
    ),
    "gemma 2": Published(
        "{{ bos_token }}{% if messages[0].role == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}{% set turns = messages %}"
        + _ALTERNATE
        + "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + "
        "m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
        ("<start_of_turn>", "<end_of_turn>"),
        "<end_of_turn>",
        eos="<eos>",
        bos="<bos>",
        system=False,
        trims=True,
    ),
    "gemma 3": Published(
        "{{ bos_token }}"
        + _SYSTEM_FIRST
        + _ALTERNATE
        + "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + "
        "(first + '\n\n' if loop.first and first else '') }}{{ m.content | trim }}"
        "{{ '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
        ("<start_of_turn>", "<end_of_turn>"),
        "<end_of_turn>",
        eos="<eos>",
        bos="<bos>",
        trims=True,
    ),
    "qwen 2.5": Published(
        "{% if tools %}{{ '<|im_start|>system\n# Tools\n<tools>' }}{% for t in tools %}"
        "{{ '\n' + t | tojson }}{% endfor %}{{ '\n</tools><|im_end|>\n' }}{% endif %}"
        "{% if messages[0].role != 'system' and not tools %}"
        "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
        "{% for m in messages %}{% if m.role == 'tool' %}"
        "{{ '<|im_start|>user\n<tool_response>\n' + m.content + '\n</tool_response><|im_end|>\n' }}"
        "{% else %}{{ '<|im_start|>' + m.role }}{% if m.content %}{{ '\n' + m.content }}{% endif %}"
        '{% for call in m.tool_calls %}{{ \'\n<tool_call>\n{"name": "\' + call.function.name + '
        "'\", \"arguments\": ' + call.function.arguments | tojson + '}\n</tool_call>' }}"
        "{% endfor %}{{ '<|im_end|>\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        _IM,
        "<|im_end|>",
        eos="<|im_end|>",
        tools=True,
    ),
    "qwen 3": Published(
        "{% set ns = namespace(last=messages | length - 1, found=false) %}"
        "{% for m in messages[::-1] %}{% if m.role == 'user' and not ns.found %}"
        "{% set ns.last = messages | length - 1 - loop.index0 %}{% set ns.found = true %}"
        "{% endif %}{% endfor %}{% for m in messages %}"
        "{{ '<|im_start|>' + ('user' if m.role == 'tool' else m.role) + '\n' }}"
        "{% if m.role == 'assistant' %}{% set content = m.content %}"
        "{% set thought = m.reasoning_content or '' %}"
        "{% if not thought and '</think>' in content %}"
        "{% set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
        "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
        "{% if loop.index0 > ns.last %}{{ '<think>\n' + thought.strip('\n') + '\n</think>\n\n' }}"
        "{% endif %}{{ content.lstrip('\n') }}{% else %}{{ m.content }}{% endif %}"
        "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|im_start|>assistant\n' }}{% if enable_thinking is defined and not enable_thinking %}"
        "{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}",
        _IM,
        "<|im_end|>",
        eos="<|im_end|>",
        lead="<think>\n\n</think>\n\n",
        earlier=False,
    ),
    "glm-4": Published(
        "[gMASK]<sop>{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}",
        ("[gMASK]", "<sop>"),
        "<|user|>",
        eos="<|endoftext|>",
        lead="\n",
    ),
    "deepseek-r1 distill": Published(
        _SYSTEM_FIRST + "{{ bos_token + first }}{% for m in turns %}{% if m.role == 'user' %}"
        "{{ '<|User|>' + m.content }}{% else %}{% set content = m.content %}"
        "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
        "{{ '<|Assistant|>' + content + '<|end of sentence|>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}",
        ("<|User|>", "<|Assistant|>"),
        "<|end of sentence|>",
        eos="<|end of sentence|>",
        bos="<|begin of sentence|>",
    ),
    "phi-3": Published(
        "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
        (),
        "<|end|>",
        eos="<|endoftext|>",
    ),
    "zephyr": Published(
        "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}"
        "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
        "{% endfor %}",
        (),
        "</s>",
        eos="</s>",
    ),
    # The block is the whole turn: role, answer, end and line break.
    "smollm 3": Published(
        _SYSTEM_FIRST + "{{ '<|im_start|>system\nToday Date: ' + strftime_now('%d %B %Y') + "
        "'\n\n' + first + '<|im_end|>\n' }}{% for m in turns %}{% if m.role == 'user' %}"
        "{{ '<|im_start|>user\n' + m.content + '<|im_end|>\n' }}{% else %}{% generation %}"
        "{{ '<|im_start|>assistant\n<think>\n\n</think>\n' + m.content.lstrip('\n') + "
        "'<|im_end|>\n' }}{% endgeneration %}{% endif %}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|im_start|>assistant\n<think>\n\n</think>\n' }}{% endif %}",
        _IM,
        "<|im_end|>",
        eos="<|im_end|>",
        lead="<|im_start|>assistant\n<think>\n\n</think>\n",
    ),
    "granite 3": Published(
        _SYSTEM_FIRST + "{% set first = first or 'Knowledge Cutoff Date: April 2024.\nToday\\'s "
        "Date: ' + strftime_now('%B %d, %Y') + '.' %}"
        "{{ '<|start_of_role|>system<|end_of_role|>' + first + '<|end_of_text|>\n' }}"
        "{% for m in turns %}{{ '<|start_of_role|>' + m.role + '<|end_of_role|>' + m.content + "
        "'<|end_of_text|>\n' }}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}",
        ("<|start_of_role|>", "<|end_of_role|>"),
        "<|end_of_text|>",
        eos="<|end_of_text|>",
        bos="<|end_of_text|>",
    ),
    "command-r": Published(
        "{{ bos_token }}{% for m in messages %}{{ '<|START_OF_TURN_TOKEN|>' + "
        "{'user': '<|USER_TOKEN|>', 'assistant': '<|CHATBOT_TOKEN|>', "
        "'system': '<|SYSTEM_TOKEN|>'}[m.role] + m.content.strip() + '<|END_OF_TURN_TOKEN|>' }}"
        "{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}",
        (
            "<|START_OF_TURN_TOKEN|>",
            "<|END_OF_TURN_TOKEN|>",
            "<|USER_TOKEN|>",
            "<|CHATBOT_TOKEN|>",
            "<|SYSTEM_TOKEN|>",
        ),
        "<|END_OF_TURN_TOKEN|>",
        eos="<|END_OF_TURN_TOKEN|>",
        bos="<BOS_TOKEN>",
        trims=True,
    ),
    "olmo 2": Published(
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}"
        "{{ '<|assistant|>\n' + m.content + eos_token }}{% if not loop.last %}{{ '\n' }}{% endif %}"
        "{% else %}{{ '<|' + m.role + '|>\n' + m.content + '\n' }}{% endif %}"
        "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
        "{% endfor %}",
        (),
        "<|endoftext|>",
        eos="<|endoftext|>",
        bos="<|endoftext|>",
    ),
    # No token of its own for any role.
    "vicuna": Published(
        _SYSTEM_FIRST + "{{ first }}{% for m in turns %}{% if m.role == 'user' %}"
        "{{ ' USER: ' + m.content }}{% else %}{{ ' ASSISTANT: ' + m.content }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}",
        (),
        "</s>",
        eos="</s>",
        bos="<s>",
        lead=" ",
    ),
}


def tokenizer_of(name, **changed):
    """The byte tokenizer with a model's special tokens and template."""
    model = MODELS[name]._replace(**changed)
    tokenizer = byte_tokenizer()
    added = [*model.specials, *(token for token in (model.eos, model.bos) if token)]
    tokenizer.add_special_tokens({"additional_special_tokens": added})
    if model.eos:
        tokenizer.eos_token = model.eos
    if model.bos:
        tokenizer.bos_token = model.bos
    tokenizer.chat_template = model.template
    return tokenizer
