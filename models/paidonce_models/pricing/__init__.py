"""What a call cost: prices, usage of provider responses, exact nano-dollars.

``extract_usage`` turns a response into a ``Usage`` (tokens are never lost to
an unknown model), ``PriceBook.price`` turns a ``Usage`` into money or
``None``. genai-prices is imported at the first use of either, not with this
package, and nothing here touches its process-wide state.
"""

from paidonce_models.pricing.book import PriceBook
from paidonce_models.pricing.extraction import extract_usage
from paidonce_models.pricing.rate_card import PricedUsage
from paidonce_models.pricing.rows import PriceRow

__all__ = ["PriceBook", "PriceRow", "PricedUsage", "extract_usage"]
