# type: ignore
"""smolagents: a CodeAgent whose code runs in an E2B sandbox, with its own loop and a model that reads from a script."""

import json

from smolagents import ChatMessage, CodeAgent, MessageRole, Model, tool

STEPS = (
    "state = 20\nprint('seen')",
    "import os\nopen('note', 'w').write(double(str(state)))\nprint(os.getcwd())",
    "1 / 0",
    "final_answer({'state': state, 'note': open('note').read()})",
)


class Scripted(Model):
    def __init__(self):
        super().__init__(model_id="scripted")
        self.steps = iter(STEPS)

    def generate(self, messages, **more):
        content = f"Thought: next.\n<code>\n{next(self.steps)}\n</code>"
        return ChatMessage(role=MessageRole.ASSISTANT, content=content)


@tool
def double(text: str) -> str:
    """Says a text twice.

    Args:
        text: what to say
    """
    return text + text


with CodeAgent(tools=[double], model=Scripted(), executor_type="e2b", verbosity_level=0) as agent:
    answer = agent.run("Count.", max_steps=len(STEPS))
    steps = [step for step in agent.memory.steps if hasattr(step, "observations")]
    found = {
        "answer": answer,
        "observations": [step.observations or "" for step in steps],
        "errors": [str(step.error) if step.error else "" for step in steps],
        "sandbox": agent.python_executor.sandbox.sandbox_id,
    }
print("\n" + json.dumps(found))
