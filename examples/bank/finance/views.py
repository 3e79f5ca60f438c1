"""The financial service: takes deposits on the web. POST /USER, with an amount and a note."""

from bank_events import UserDeposited
from django.db import transaction
from django.forms import modelform_factory
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path
from django.views.decorators.http import require_POST
from worker.contrib.django import Outbox

from examples.bank.finance.models import Deposit
from worker import App

app = App("finance")
outbox = Outbox(app)
DepositForm = modelform_factory(Deposit, fields=("amount", "note"))


@require_POST
def deposit(request: HttpRequest, user_id: str) -> HttpResponse:
    """Keep the deposit and tell of it: both, or nothing. Who listens is not our business."""
    form = DepositForm(request.POST, instance=Deposit(user_id=user_id))
    if not form.is_valid():
        return JsonResponse(form.errors, status=400)
    with transaction.atomic():
        kept = form.save()
        event = UserDeposited(user_id=user_id, amount=kept.amount, note=kept.note)
        outbox.publish_on_commit(event)
    return HttpResponse(event.event_id, status=201, content_type="text/plain")


urlpatterns = [path("<user_id>", deposit)]
