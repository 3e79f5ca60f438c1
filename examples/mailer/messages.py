"""What the mailer can be told to do. A library that the mailer and its callers share."""

from worker import Command


class SendEmail(Command, name="mailer.send_email", to="mailer", key="user_id"):
    user_id: str
    text: str
